"""How the model responds to noise in each class, and what that says.

In: results/{model}/target/, corpus/, geometry/. Out: results/{model}/prm/, results.json, results.csv.
"""


rule shadow:
    input:
        base=multiext("results/{model}/base/", *WEIGHTS),
        member="results/{model}/corpus/member.parquet",
        nonmember="results/{model}/corpus/nonmember.parquet",
    output:
        "results/{model}/membership/shadows/{number}-of-{total}.parquet",
    params:
        code=code_digest("cli.shadow"),
        base=base_folder,
        schedule=options(config["target"]),
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/shadow/{number}-of-{total}.log",
    benchmark:
        "benchmarks/{model}/shadow/{number}-of-{total}.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("shadow"),
    message:
        "shadow model {wildcards.number} of {wildcards.total} for LiRA"
    shell:
        "paramscope shadow {params.base} {input.member} {input.nonmember} {output}"
        " --number {wildcards.number} --count {wildcards.total} {params.schedule}"
        " --length {params.length} --seed {params.seed} {params.compute} > {log} 2>&1"


rule membership:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        base=multiext("results/{model}/base/", *WEIGHTS),
        member="results/{model}/corpus/member.parquet",
        nonmember="results/{model}/corpus/nonmember.parquet",
        shadows=shadow_tables,
    output:
        scores="results/{model}/membership/scores.parquet",
        summary="results/{model}/membership/summary.json",
    params:
        code=code_digest("cli.membership"),
        target=target_folder,
        base=base_folder,
        shadows=shadow_options,
        sizes=options({k: config["membership"][k] for k in ("probe", "bootstrap")}),
        measure=options({k: config["prm"][k] for k in ("min_k", "batch")}),
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/membership.log",
    benchmark:
        "benchmarks/{model}/membership.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("membership"),
    message:
        "membership inference on {wildcards.model}"
    shell:
        "paramscope membership {params.target} {params.base} {input.member} {input.nonmember}"
        " {output.scores} --output-summary {output.summary} {params.shadows} {params.sizes}"
        " {params.measure} --length {params.length} --seed {params.seed} {params.compute}"
        " > {log} 2>&1"


rule noise_range:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        partition=classes_file,
        evaluation="results/{model}/corpus/evaluation.parquet",
    output:
        "results/{model}/prm/{rule}.range.json",
    params:
        code=code_digest("cli.noise_range"),
        target=target_folder,
        sizes=options({k: config["prm"][k] for k in ("points", "noise", "batch")}),
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/noise_range/{rule}.log",
    benchmark:
        "benchmarks/{model}/noise_range/{rule}.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("noise_range"),
    message:
        "scales of noise for the classes of {wildcards.rule}"
    shell:
        "paramscope noise-range {params.target} {input.partition} {input.evaluation} {output}"
        " {params.sizes} --length {params.length} --seed {params.seed} {params.compute}"
        " > {log} 2>&1"


rule prm:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        partition=classes_file,
        ranges=noise_scales,
        diagonal="results/{model}/curvature/diagonal.pt",
        member="results/{model}/corpus/member.parquet",
        nonmember="results/{model}/corpus/nonmember.parquet",
        evaluation="results/{model}/corpus/evaluation.parquet",
    output:
        "results/{model}/prm/shards/{rule}/{first}-{size}.parquet",
    params:
        code=code_digest("cli.prm"),
        target=target_folder,
        scales=scale_options,
        noise=config["prm"]["noise"],
        measure=options({k: config["prm"][k] for k in ("min_k", "bootstrap", "batch")}),
        probe=config["membership"]["probe"],
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/prm/{rule}-{first}-{size}.log",
    benchmark:
        "benchmarks/{model}/prm/{rule}-{first}-{size}.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("prm"),
    message:
        "noise in the classes of {wildcards.rule}: {wildcards.size} seeds from number {wildcards.first}"
    shell:
        "paramscope prm {params.target} {input.partition} {input.member} {input.nonmember}"
        " {input.evaluation} {output} {params.scales} --noise {params.noise}"
        " --diagonal {input.diagonal} --first {wildcards.first}"
        " --seeds {wildcards.size} {params.measure} --probe {params.probe}"
        " --length {params.length}"
        " --seed {params.seed} {params.compute} > {log} 2>&1"


rule prm_responses:
    input:
        response_shards,
    output:
        "results/{model}/prm/{rule}.parquet",
    params:
        code=code_digest("cli.prm_responses"),
        shards=shard_options,
    log:
        "logs/{model}/prm_responses/{rule}.log",
    benchmark:
        "benchmarks/{model}/prm_responses/{rule}.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "merging the responses by rule {wildcards.rule}"
    shell:
        "paramscope prm-responses {output} {params.shards} > {log} 2>&1"


rule prm_statistics:
    input:
        responses="results/{model}/prm/{rule}.parquet",
        null=null_statistics,
    output:
        "results/{model}/prm/{rule}.statistics.json",
    params:
        code=code_digest("cli.prm_statistics"),
        null=null_options,
        seed=run_seed,
    log:
        "logs/{model}/prm_statistics/{rule}.log",
    benchmark:
        "benchmarks/{model}/prm_statistics/{rule}.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "testing the responses by rule {wildcards.rule}"
    shell:
        "paramscope prm-statistics {input.responses} {output} --rule {wildcards.rule}"
        " {params.null} --seed {params.seed} > {log} 2>&1"


rule tensor_responses:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        diagonal="results/{model}/curvature/diagonal.pt",
        member="results/{model}/corpus/member.parquet",
        nonmember="results/{model}/corpus/nonmember.parquet",
        evaluation="results/{model}/corpus/evaluation.parquet",
    output:
        "results/{model}/prm/tensors.responses.parquet",
    params:
        code=code_digest("cli.tensor_responses"),
        target=target_folder,
        seeds=config["prm"]["tensor_seeds"],
        batch=config["prm"]["batch"],
        probe=config["membership"]["probe"],
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/tensor_responses.log",
    benchmark:
        "benchmarks/{model}/tensor_responses.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("tensor_responses"),
    message:
        "noise in one weight of {wildcards.model} at a time"
    shell:
        "paramscope tensor-responses {params.target} {input.diagonal} {input.member}"
        " {input.nonmember} {input.evaluation} {output} --probe {params.probe}"
        " --seeds {params.seeds} --batch {params.batch} --length {params.length}"
        " --seed {params.seed} {params.compute} > {log} 2>&1"


rule removal:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        directions="results/{model}/geometry/directions.pt",
        member="results/{model}/corpus/member.parquet",
        nonmember="results/{model}/corpus/nonmember.parquet",
        evaluation="results/{model}/corpus/evaluation.parquet",
    output:
        rows="results/{model}/prm/removal.parquet",
        record="results/{model}/prm/removal.json",
    params:
        code=code_digest("cli.removal"),
        target=target_folder,
        measure=options({k: config["prm"][k] for k in ("bootstrap", "batch")}),
        sizes=options({k: config["kfac"][f"removal_{k}"] for k in ("draws", "seeds")}),
        probe=config["membership"]["probe"],
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/removal.log",
    benchmark:
        "benchmarks/{model}/removal.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("removal"),
    message:
        "taking directions of low curvature out of {wildcards.model}"
    shell:
        "paramscope removal {params.target} {input.directions} {input.member} {input.nonmember}"
        " {input.evaluation} {output.rows} --output-record {output.record} {params.sizes}"
        " --probe {params.probe} {params.measure} --length {params.length}"
        " --seed {params.seed} {params.compute} > {log} 2>&1"


rule findings:
    input:
        STATISTICS,
    output:
        text=report(
            f"{RESULTS}/findings.md",
            caption="../workflow/report/findings.rst",
            category="Response",
            labels={"figure": "findings in words", "model": MODEL},
        ),
        table=f"{RESULTS}/separation.tex",
    params:
        code=code_digest("cli.findings"),
        given=repeated("statistics", STATISTICS),
        model=MODEL,
    log:
        f"logs/{MODEL}/findings.log",
    benchmark:
        f"benchmarks/{MODEL}/findings.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "what {params.model} shows, in words"
    shell:
        "paramscope findings {output.text} --output-table {output.table} {params.given}"
        " --model {params.model} > {log} 2>&1"


rule replication:
    input:
        unpack(replication_inputs),
    output:
        record=f"{RESULTS}/replication.json",
        table=f"{RESULTS}/replication.md",
    params:
        code=code_digest("cli.replication"),
        given=replication_options,
    log:
        f"logs/{MODEL}/replication.log",
    benchmark:
        f"benchmarks/{MODEL}/replication.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "the separation scores over training seeds"
    shell:
        "paramscope replication {output.record} --output-table {output.table} {params.given}"
        " > {log} 2>&1"


rule results:
    input:
        unpack(results_inputs),
    output:
        record="results/{model}/results.json",
        rows="results/{model}/results.csv",
    params:
        code=code_digest("cli.results"),
        given=results_options,
    log:
        "logs/{model}/results.log",
    benchmark:
        "benchmarks/{model}/results.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "gathering the results of {wildcards.model}"
    shell:
        "paramscope results {output.record} --output-csv {output.rows}"
        " --model {wildcards.model} --benchmarks benchmarks/{wildcards.model}"
        " {params.given} > {log} 2>&1"
