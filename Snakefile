"""paramscope: what each part of a causal language model's parameters does.

The default target is the whole `geometry` study of the model that `config.yaml` names.
"""

from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


include: "rules/common.smk"


wildcard_constraints:
    number=r"\d+",
    total=r"\d+",
    model=r"[^/]+",
    rule=r"[a-z_]+",
    method=r"[a-z]+",
    density=r"[0-9.e-]+",


rule all:
    default_target: True
    input:
        study_outputs,


include: "rules/data.smk"
include: "rules/model.smk"
include: "rules/geometry.smk"
include: "rules/response.smk"
include: "rules/figures.smk"
include: "rules/compression_common.smk"
include: "rules/compression.smk"
include: "rules/dpsgd_common.smk"
include: "rules/dpsgd.smk"
include: "rules/memory_common.smk"
include: "rules/memory.smk"
include: "rules/benchmarks.smk"


onstart:
    refuse_what_does_not_fit()


onsuccess:
    print(closing_words())
