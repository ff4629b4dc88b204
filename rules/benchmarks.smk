"""What our parts are worth: estimators of curvature beside their peers, and whether planted
memory is found. Asked for by name.

In: results/{model}/target/ and corpus/. Out: results/benchmarks/.
"""


rule curvature_contenders:
    input:
        scripts=expand(
            "tests/benchmarks/{name}.py",
            name=[
                *("curvature", "job", "process", "case", "contenders", "peers", "by_entry"),
                "accuracy",
            ],
        ),
        target=multiext(f"{RESULTS}/target/", *WEIGHTS),
        calibration=f"{RESULTS}/corpus/calibration.parquet",
    output:
        runs="results/benchmarks/curvature.parquet",
        summary="results/benchmarks/curvature-summary.parquet",
        table="results/benchmarks/curvature.md",
    params:
        code=code_digest("curvature.methods", "tracker"),
        target=run_target_folder,
        length=config["length"],
        seed=config["seed"],
    log:
        "logs/curvature_contenders.log",
    benchmark:
        "benchmarks/curvature_contenders.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: workflow.cores
    resources:
        mem_mb=4000,
    message:
        "estimators of curvature side by side, each in processes of its own"
    shell:
        "python {input.scripts[0]} {params.target} {input.calibration} {output.runs}"
        " --output-summary {output.summary} --output-table {output.table}"
        " --length {params.length} --seed {params.seed} > {log} 2>&1"


rule benchmark_curvature:
    input:
        runs="results/benchmarks/curvature.parquet",
        summary="results/benchmarks/curvature-summary.parquet",
    output:
        png=report(
            "results/benchmarks/benchmark_curvature.png",
            caption="../workflow/report/benchmark_curvature.rst",
            category="Curvature",
            labels={"figure": "benchmark of curvature", "model": MODEL},
        ),
        pdf="results/benchmarks/benchmark_curvature.pdf",
    params:
        code=code_digest("cli.benchmark_curvature"),
        model=MODEL,
    log:
        "logs/benchmark_curvature.log",
    benchmark:
        "benchmarks/benchmark_curvature.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: what estimators of curvature cost and give"
    shell:
        "paramscope benchmark-curvature {output.png} --runs {input.runs}"
        " --summary {input.summary} --model {params.model} > {log} 2>&1"


rule benchmark_partition:
    input:
        script="tests/benchmarks/partition.py",
    output:
        "results/benchmarks/partition.parquet",
    params:
        code=code_digest("curvature.ggn", "geometry.membership", "models.training"),
        seed=config["seed"],
    log:
        "logs/benchmark_partition.log",
    benchmark:
        "benchmarks/benchmark_partition.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    message:
        "planted memory: which scores find the rows that hold it"
    shell:
        "python {input.script} {output} --seed {params.seed} > {log} 2>&1"


rule benchmark_compression:
    input:
        scripts=expand(
            "tests/benchmarks/{name}.py",
            name=[
                *("compression", "compression_job", "compression_cases", "compression_oracle"),
                *("compression_published", "compression_steps", "compression_goals"),
                *("goals", "jobs"),
            ],
        ),
        target=multiext(f"{RESULTS}/target/", *WEIGHTS),
        calibration=f"{RESULTS}/corpus/calibration.parquet",
    output:
        "results/benchmarks/compression.json",
    params:
        code=code_digest("compression.methods", "compression.finetune", "tracker"),
        target=run_target_folder,
        seed=config["seed"],
    log:
        "logs/benchmark_compression.log",
    benchmark:
        "benchmarks/benchmark_compression.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: workflow.cores
    resources:
        mem_mb=4000,
    message:
        "pruning, steps and checkpoints beside their references, in processes of their own"
    shell:
        "python -m tests.benchmarks.compression {output} --model {params.target}"
        " --calibration {input.calibration} --seed {params.seed} > {log} 2>&1"


rule benchmark_dpsgd:
    input:
        scripts=expand(
            "tests/benchmarks/{name}.py",
            name=["dpsgd", "dpsgd_job", "goals", "jobs"],
        ),
    output:
        "results/benchmarks/dpsgd.json",
    params:
        code=code_digest("dpsgd.methods", "dpsgd.profile"),
        seed=config["seed"],
    log:
        "logs/benchmark_dpsgd.log",
    benchmark:
        "benchmarks/benchmark_dpsgd.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: workflow.cores
    resources:
        mem_mb=4000,
    message:
        "clipping methods beside plain training and Opacus, in processes of their own"
    shell:
        "python -m tests.benchmarks.dpsgd {output} --seed {params.seed} > {log} 2>&1"


rule benchmark_planner:
    input:
        scripts=expand("tests/benchmarks/{name}.py", name=["planner", "goals", "jobs"]),
        accuracy="results/memory/accuracy.parquet",
    output:
        "results/benchmarks/planner.json",
    params:
        code=code_digest("planner.accuracy", "planner.estimate"),
    log:
        "logs/benchmark_planner.log",
    benchmark:
        "benchmarks/benchmark_planner.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: workflow.cores
    resources:
        mem_mb=2000,
    message:
        "plans and accelerate's rule beside real runs, and the time of estimates"
    shell:
        "python -m tests.benchmarks.planner {output} --accuracy {input.accuracy} > {log} 2>&1"
