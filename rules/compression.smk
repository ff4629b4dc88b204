"""How far the model can be pruned, and how much of it finetuning brings back.

In: results/{model}/target/, corpus/. Out: results/{model}/compression/.
"""


rule prune:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        calibration="results/{model}/corpus/calibration.parquet",
        text="results/{model}/corpus/public.parquet",
    output:
        directory("results/{model}/compression/{method}/density-{density}/pruned"),
    params:
        code=code_digest("cli.prune"),
        target=target_folder,
        layers=options({k: PRUNING[k] for k in ("pattern", "blocksize", "damping", "samples")}),
        recovery=recovery_options,
        batch=PRUNING["batch"],
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
        memory=PRUNING["memory_gb"],
    log:
        "logs/{model}/prune/{method}-{density}.log",
    benchmark:
        "benchmarks/{model}/prune/{method}-{density}.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("prune"),
    message:
        "pruning {wildcards.model} to density {wildcards.density} by {wildcards.method}"
    shell:
        "paramscope prune {params.target} {output} --calibration {input.calibration}"
        " --method {wildcards.method} --density {wildcards.density} {params.layers}"
        " {params.recovery} --text {input.text} --batch {params.batch} --length {params.length}"
        " --seed {params.seed} {params.compute} --memory-gb {params.memory} > {log} 2>&1"


rule finetune:
    input:
        pruned="results/{model}/compression/{method}/density-{density}/pruned",
        teacher=distillation_teacher,
        text="results/{model}/corpus/public.parquet",
        validation="results/{model}/corpus/nonmember.parquet",
        evaluation="results/{model}/corpus/evaluation.parquet",
    output:
        folder=directory("results/{model}/compression/{method}/density-{density}/finetuned"),
        epochs="results/{model}/compression/{method}/density-{density}/epochs.parquet",
    params:
        code=code_digest("cli.finetune"),
        schedule=finetune_options,
        tracking=tracking_options,
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
        memory=PRUNING["memory_gb"],
    log:
        "logs/{model}/finetune/{method}-{density}.log",
    benchmark:
        "benchmarks/{model}/finetune/{method}-{density}.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("finetune"),
    message:
        "finetuning what {wildcards.method} left of {wildcards.model} at density {wildcards.density}"
    shell:
        "paramscope finetune {input.pruned} {output.folder} --output-epochs {output.epochs}"
        " --text {input.text} --validation {input.validation} --evaluation {input.evaluation}"
        " {params.schedule} {params.tracking} --length {params.length} --seed {params.seed}"
        " {params.compute} --memory-gb {params.memory} > {log} 2>&1"


rule evaluate:
    input:
        target=multiext("results/{model}/target/", *WEIGHTS),
        pruned="results/{model}/compression/{method}/density-{density}/pruned",
        finetuned="results/{model}/compression/{method}/density-{density}/finetuned",
        evaluation="results/{model}/corpus/evaluation.parquet",
        texts=evaluation_files,
        documents=generation_documents,
    output:
        "results/{model}/compression/{method}/density-{density}/evaluation.json",
    params:
        code=code_digest("cli.evaluate"),
        target=target_folder,
        texts=evaluation_options,
        batch=PRUNING["batch"],
        length=config["length"],
        compute=compute_options(1),
    log:
        "logs/{model}/evaluate/{method}-{density}.log",
    benchmark:
        "benchmarks/{model}/evaluate/{method}-{density}.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("evaluate"),
    message:
        "perplexity of {wildcards.model}, dense and at density {wildcards.density} by {wildcards.method}"
    shell:
        "paramscope evaluate {params.target} {input.pruned} {input.finetuned} {output}"
        " --evaluation {input.evaluation} {params.texts} --batch {params.batch}"
        " --length {params.length} {params.compute} > {log} 2>&1"


rule summary:
    input:
        epochs="results/{model}/compression/{method}/density-{density}/epochs.parquet",
        evaluation="results/{model}/compression/{method}/density-{density}/evaluation.json",
    output:
        "results/{model}/compression/{method}/density-{density}/summary.txt",
    params:
        code=code_digest("cli.summary"),
        folder=subpath(output[0], parent=True),
    log:
        "logs/{model}/summary/{method}-{density}.log",
    benchmark:
        "benchmarks/{model}/summary/{method}-{density}.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "what {wildcards.method} did to {wildcards.model} at density {wildcards.density}, in lines"
    shell:
        "paramscope summary {params.folder} --model {wildcards.model} > {log} 2>&1"


rule compression_results:
    input:
        runs=collect(
            "results/{{model}}/compression/{run}/{file}",
            run=COMPRESSION_RUNS,
            file=["epochs.parquet", "evaluation.json"],
        ),
        pruned=collect("results/{{model}}/compression/{run}/pruned", run=COMPRESSION_RUNS),
    output:
        multiext(
            "results/{model}/compression/study/",
            "epochs.parquet",
            "layers.parquet",
            "frontier.parquet",
            "results.json",
            "table.tex",
        ),
    params:
        code=code_digest("cli.compression_results"),
        folder=subpath(output[0], parent=True),
        runs=compression_folders,
    log:
        "logs/{model}/compression_results.log",
    benchmark:
        "benchmarks/{model}/compression_results.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "gathering the pruned models of {wildcards.model}"
    shell:
        "paramscope compression-results {params.folder} {params.runs} --model {wildcards.model}"
        " > {log} 2>&1"


rule perplexity_trend:
    input:
        epochs=f"{RESULTS}/compression/study/epochs.parquet",
        record=f"{RESULTS}/compression/study/results.json",
    output:
        png=report(
            f"{RESULTS}/compression/figures/perplexity_trend.png",
            caption="../workflow/report/perplexity_trend.rst",
            category="Compression",
            labels={"figure": "perplexity by epoch", "model": MODEL},
        ),
        pdf=f"{RESULTS}/compression/figures/perplexity_trend.pdf",
    params:
        code=code_digest("cli.perplexity_trend"),
        model=MODEL,
    log:
        f"logs/{MODEL}/perplexity_trend.log",
    benchmark:
        f"benchmarks/{MODEL}/perplexity_trend.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: perplexity by epoch of the pruned models"
    shell:
        "paramscope perplexity-trend {output.png} --epochs {input.epochs}"
        " --record {input.record}"
        " --model {params.model} > {log} 2>&1"


rule density_frontier:
    input:
        frontier=f"{RESULTS}/compression/study/frontier.parquet",
        record=f"{RESULTS}/compression/study/results.json",
    output:
        png=report(
            f"{RESULTS}/compression/figures/density_frontier.png",
            caption="../workflow/report/density_frontier.rst",
            category="Compression",
            labels={"figure": "perplexity over density", "model": MODEL},
        ),
        pdf=f"{RESULTS}/compression/figures/density_frontier.pdf",
    params:
        code=code_digest("cli.density_frontier"),
        model=MODEL,
    log:
        f"logs/{MODEL}/density_frontier.log",
    benchmark:
        f"benchmarks/{MODEL}/density_frontier.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: perplexity over density of the pruned models"
    shell:
        "paramscope density-frontier {output.png} --frontier {input.frontier}"
        " --record {input.record}"
        " --model {params.model} > {log} 2>&1"


rule layer_sparsity:
    input:
        layers=f"{RESULTS}/compression/study/layers.parquet",
    output:
        png=report(
            f"{RESULTS}/compression/figures/layer_sparsity.png",
            caption="../workflow/report/layer_sparsity.rst",
            category="Compression",
            labels={"figure": "zeros by layer", "model": MODEL},
        ),
        pdf=f"{RESULTS}/compression/figures/layer_sparsity.pdf",
    params:
        code=code_digest("cli.layer_sparsity"),
        model=MODEL,
    log:
        f"logs/{MODEL}/layer_sparsity.log",
    benchmark:
        f"benchmarks/{MODEL}/layer_sparsity.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: zeros by layer of the pruned models"
    shell:
        "paramscope layer-sparsity {output.png} --layers {input.layers}"
        " --model {params.model} > {log} 2>&1"


rule memory_per_epoch:
    input:
        epochs=f"{RESULTS}/compression/study/epochs.parquet",
    output:
        png=report(
            f"{RESULTS}/compression/figures/memory_per_epoch.png",
            caption="../workflow/report/memory_per_epoch.rst",
            category="Compression",
            labels={"figure": "memory by epoch", "model": MODEL},
        ),
        pdf=f"{RESULTS}/compression/figures/memory_per_epoch.pdf",
    params:
        code=code_digest("cli.memory_per_epoch"),
        model=MODEL,
    log:
        f"logs/{MODEL}/memory_per_epoch.log",
    benchmark:
        f"benchmarks/{MODEL}/memory_per_epoch.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: memory by epoch of the pruned models"
    shell:
        "paramscope memory-per-epoch {output.png} --epochs {input.epochs}"
        " --model {params.model} > {log} 2>&1"


rule compression:
    input:
        compression_outputs,
