"""Models: tokenizer, base, and the target under study.

In: results/{model}/corpus/. Out: results/{model}/tokenizer/, base/, target/.
"""


rule tokenizer:
    input:
        public="results/{model}/corpus/public.parquet",
    output:
        tokenizer="results/{model}/tokenizer/tokenizer.json",
        config="results/{model}/tokenizer/tokenizer_config.json",
        provenance="results/{model}/tokenizer/provenance.json",
    params:
        code=code_digest("cli.tokenizer"),
        folder=subpath(output.tokenizer, parent=True),
        kind=tokenizer_options,
    log:
        "logs/{model}/tokenizer.log",
    benchmark:
        "benchmarks/{model}/tokenizer.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "making the tokenizer of {wildcards.model}"
    shell:
        "paramscope tokenizer {input.public} {params.folder} {params.kind} > {log} 2>&1"


rule base:
    input:
        tokenizer="results/{model}/tokenizer/tokenizer.json",
        public="results/{model}/corpus/public.parquet",
        member="results/{model}/corpus/member.parquet",
        nonmember="results/{model}/corpus/nonmember.parquet",
    output:
        config="results/{model}/base/config.json",
        weights="results/{model}/base/model.safetensors",
        tokenizer="results/{model}/base/tokenizer.json",
        training="results/{model}/base/training.parquet",
        provenance="results/{model}/base/provenance.json",
    params:
        code=code_digest("cli.base"),
        tokenizer=subpath(input.tokenizer, parent=True),
        folder=subpath(output.weights, parent=True),
        kind=base_options,
        length=config["length"],
        seed=run_seed,
        compute=compute_options(config["threads"]),
    log:
        "logs/{model}/base.log",
    benchmark:
        "benchmarks/{model}/base.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: config["threads"]
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("base"),
    message:
        "making the base of {wildcards.model}, which never sees a member"
    shell:
        "paramscope base {params.tokenizer} {input.public} {input.member} {input.nonmember}"
        " {params.folder} {params.kind} --length {params.length} --seed {params.seed}"
        " {params.compute} > {log} 2>&1"


rule target:
    input:
        base=multiext("results/{model}/base/", *WEIGHTS),
        member="results/{model}/corpus/member.parquet",
        nonmember="results/{model}/corpus/nonmember.parquet",
    output:
        config="results/{model}/target/config.json",
        weights="results/{model}/target/model.safetensors",
        tokenizer="results/{model}/target/tokenizer.json",
        training="results/{model}/target/training.parquet",
        provenance="results/{model}/target/provenance.json",
    params:
        code=code_digest("cli.target"),
        base=base_folder,
        folder=subpath(output.weights, parent=True),
        schedule=options(config["target"]),
        length=config["length"],
        seed=run_seed,
        compute=compute_options(config["threads"]),
    log:
        "logs/{model}/target.log",
    benchmark:
        "benchmarks/{model}/target.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: config["threads"]
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("target"),
    message:
        "finetuning {wildcards.model} on the members"
    shell:
        "paramscope target {params.base} {input.member} {input.nonmember} {params.folder}"
        " {params.schedule} --length {params.length} --seed {params.seed}"
        " {params.compute} > {log} 2>&1"
