"""What each unit is like: curvature, sparsity, eigenspace, features, embedding, partition.

In: results/{model}/target/ and corpus/. Out: results/{model}/curvature/, activations/, geometry/.
"""


rule curvature_draws:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        calibration="results/{model}/corpus/calibration.parquet",
        previous=earlier_draw_shards,
    output:
        "results/{model}/curvature/draws/{first}-{size}.pt",
    params:
        code=code_digest("cli.curvature_draws"),
        target=target_folder,
        engine=options(CURVATURE_ENGINE),
        stop=stop_options,
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/curvature_draws/{first}-{size}.log",
    benchmark:
        "benchmarks/{model}/curvature_draws/{first}-{size}.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("curvature_draws"),
    message:
        "curvature of {wildcards.model}: {wildcards.size} draws from number {wildcards.first}"
    shell:
        "paramscope curvature-draws {params.target} {input.calibration} {output}"
        " --first {wildcards.first} --draws {wildcards.size} {params.stop} {params.engine}"
        " --length {params.length} --seed {params.seed} {params.compute} > {log} 2>&1"


rule curvature:
    input:
        draw_shards,
    output:
        diagonal="results/{model}/curvature/diagonal.pt",
        summary="results/{model}/curvature/summary.parquet",
    params:
        code=code_digest("cli.curvature"),
        shards=shard_options,
    log:
        "logs/{model}/curvature.log",
    benchmark:
        "benchmarks/{model}/curvature.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=stage_memory("curvature", 1000),
    message:
        "merging the curvature draws of {wildcards.model}"
    shell:
        "paramscope curvature {output.diagonal} {params.shards}"
        " --output-summary {output.summary} > {log} 2>&1"


rule spotcheck:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        calibration="results/{model}/corpus/calibration.parquet",
    output:
        table="results/{model}/curvature/spotcheck.parquet",
        draws="results/{model}/curvature/spotcheck_draws.parquet",
        quality="results/{model}/curvature/spotcheck.json",
    params:
        code=code_digest("cli.spotcheck"),
        target=target_folder,
        sizes=options(config["spotcheck"]),
        draws=config["curvature"]["draws"],
        engine=options(CURVATURE_ENGINE),
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/spotcheck.log",
    benchmark:
        "benchmarks/{model}/spotcheck.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("spotcheck"),
    message:
        "setting the curvature of {wildcards.model} beside exact entries"
    shell:
        "paramscope spotcheck {params.target} {input.calibration} {output.table}"
        " --output-draws {output.draws} --output-quality {output.quality} {params.sizes}"
        " --draws {params.draws} {params.engine} --length {params.length} --seed {params.seed}"
        " {params.compute} > {log} 2>&1"


rule curvature_blocks:
    input:
        target=multiext(f"{RESULTS}/target/", *WEIGHTS),
        calibration=f"{RESULTS}/corpus/calibration.parquet",
    output:
        f"{RESULTS}/curvature/blocks.pt",
    params:
        code=code_digest("cli.curvature_blocks"),
        target=run_target_folder,
        units=repeated("unit", config["curvature_blocks"]["units"]),
        draws=config["curvature"]["draws"],
        graph=config["curvature"]["graph"],
        batch=config["curvature"]["batch"],
        memory=config["curvature"]["memory_gb"],
        length=config["length"],
        seed=config["seed"],
        compute=compute_options(1),
    log:
        f"logs/{MODEL}/curvature_blocks.log",
    benchmark:
        f"benchmarks/{MODEL}/curvature_blocks.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("curvature_blocks"),
    message:
        "Gauss-Newton blocks of chosen units"
    shell:
        "paramscope curvature-blocks {params.target} {input.calibration} {output} {params.units}"
        " --draws {params.draws} --graph {params.graph} --batch {params.batch}"
        " --memory-gb {params.memory} --length {params.length} --seed {params.seed}"
        " {params.compute} > {log} 2>&1"


rule eigenspace:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        calibration="results/{model}/corpus/calibration.parquet",
    output:
        "results/{model}/curvature/eigenspace.pt",
    params:
        code=code_digest("cli.eigenspace"),
        target=target_folder,
        sizes=options(config["eigenspace"]),
        batch=config["curvature"]["batch"],
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/eigenspace.log",
    benchmark:
        "benchmarks/{model}/eigenspace.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("eigenspace"),
    message:
        "leading eigenpairs of the Hessian of {wildcards.model}"
    shell:
        "paramscope eigenspace {params.target} {input.calibration} {output} {params.sizes}"
        " --batch {params.batch} --length {params.length} --seed {params.seed}"
        " {params.compute} > {log} 2>&1"


rule activation_sparsity:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        calibration="results/{model}/corpus/calibration.parquet",
    output:
        "results/{model}/activations/sparsity.parquet",
    params:
        code=code_digest("cli.activation_sparsity"),
        target=target_folder,
        sizes=options(config["activation_sparsity"]),
        length=config["length"],
        compute=compute_options(1),
    log:
        "logs/{model}/activation_sparsity.log",
    benchmark:
        "benchmarks/{model}/activation_sparsity.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("activation_sparsity"),
    message:
        "activation sparsity of {wildcards.model}"
    shell:
        "paramscope activation-sparsity {params.target} {input.calibration} {output} {params.sizes}"
        " --length {params.length} {params.compute} > {log} 2>&1"


rule membership_features:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        member="results/{model}/corpus/member.parquet",
        nonmember="results/{model}/corpus/nonmember.parquet",
    output:
        "results/{model}/geometry/membership.parquet",
    params:
        code=code_digest("cli.membership_features"),
        target=target_folder,
        probe=config["membership"]["probe"],
        draws=config["membership"]["contrast_draws"],
        batch=config["curvature"]["batch"],
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/membership_features.log",
    benchmark:
        "benchmarks/{model}/membership_features.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("membership_features"),
    message:
        "what holds up the loss gap of {wildcards.model}, by unit"
    shell:
        "paramscope membership-features {params.target} {input.member} {input.nonmember}"
        " {output} --probe {params.probe} --draws {params.draws} --batch {params.batch}"
        " --length {params.length} --seed {params.seed} {params.compute} > {log} 2>&1"


rule kfac:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        calibration="results/{model}/corpus/calibration.parquet",
    output:
        "results/{model}/curvature/kfac.pt",
    params:
        code=code_digest("cli.kfac"),
        target=target_folder,
        draws=config["kfac"]["draws"],
        sizes=options({k: config["curvature"][k] for k in ("graph", "batch", "memory_gb")}),
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/kfac.log",
    benchmark:
        "benchmarks/{model}/kfac.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("kfac"),
    message:
        "Kronecker factors of the curvature of {wildcards.model}"
    shell:
        "paramscope kfac {params.target} {input.calibration} {output} --draws {params.draws}"
        " {params.sizes} --length {params.length} --seed {params.seed} {params.compute}"
        " > {log} 2>&1"


rule directions:
    input:
        "results/{model}/curvature/kfac.pt",
    output:
        "results/{model}/geometry/directions.pt",
    params:
        code=code_digest("cli.directions"),
        classes=options({k: config["kfac"][k] for k in ("by", "share")}),
        seed=run_seed,
    log:
        "logs/{model}/directions.log",
    benchmark:
        "benchmarks/{model}/directions.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=stage_memory("directions", 1000),
    message:
        "eigen-directions of the curvature of {wildcards.model}"
    shell:
        "paramscope directions {input} {output} {params.classes} --seed {params.seed}"
        " > {log} 2>&1"


rule units:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        diagonal="results/{model}/curvature/diagonal.pt",
        sparsity="results/{model}/activations/sparsity.parquet",
        eigenspace="results/{model}/curvature/eigenspace.pt",
        membership="results/{model}/geometry/membership.parquet",
    output:
        "results/{model}/geometry/units.parquet",
    wildcard_constraints:
        model=MEASURED_MODELS,
    params:
        code=code_digest("cli.units"),
        target=target_folder,
        granularity=config["partition"]["granularity"],
    log:
        "logs/{model}/units.log",
    benchmark:
        "benchmarks/{model}/units.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=stage_memory("units"),
    message:
        "features of every unit of {wildcards.model}"
    shell:
        "paramscope units {params.target} {input.diagonal} {input.sparsity} {input.eigenspace}"
        " {output} --membership {input.membership} --granularity {params.granularity}"
        " > {log} 2>&1"


rule planted_units:
    output:
        "results/{model}/geometry/units.parquet",
    wildcard_constraints:
        model=PLANTED_MODELS,
    params:
        code=code_digest("cli.planted_units"),
        units=planted_count,
        seed=run_seed,
    log:
        "logs/{model}/planted_units.log",
    benchmark:
        "benchmarks/{model}/planted_units.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "planting synthetic units of known classes"
    shell:
        "paramscope planted-units {output} --units {params.units} --seed {params.seed} > {log} 2>&1"


rule embedding:
    input:
        units="results/{model}/geometry/units.parquet",
    output:
        embedding="results/{model}/geometry/embedding.parquet",
        quality="results/{model}/geometry/embedding.json",
    params:
        code=code_digest("cli.embedding"),
        layout=options(config["embedding"]),
        seed=run_seed,
    log:
        "logs/{model}/embedding.log",
    benchmark:
        "benchmarks/{model}/embedding.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "laying out the units of {wildcards.model}"
    shell:
        "paramscope embedding {input.units} {output.embedding} --output-quality {output.quality}"
        " {params.layout} --seed {params.seed} > {log} 2>&1"


rule partition:
    input:
        units="results/{model}/geometry/units.parquet",
        like=partition_reference,
    output:
        "results/{model}/geometry/partition/{rule}.parquet",
    params:
        code=code_digest("cli.partition"),
        choice=partition_options,
    log:
        "logs/{model}/partition/{rule}.log",
    benchmark:
        "benchmarks/{model}/partition/{rule}.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "partition of {wildcards.model} by rule {wildcards.rule}"
    shell:
        "paramscope partition {input.units} {output} --rule {wildcards.rule} {params.choice}"
        " > {log} 2>&1"
