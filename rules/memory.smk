"""What each strategy takes of memory on each model, which devices it fits, and how sure that is.

In: models by name, or config.json of local folders; no weights. Out: results/memory/.
"""


rule memory_estimates:
    input:
        planned_configurations,
    output:
        plan=f"{PLANNED}/plan.parquet",
        document=f"{PLANNED}/plan.md",
    params:
        code=code_digest("cli.memory_estimates"),
        folder=subpath(output.plan, parent=True),
        asked=plan_options,
    log:
        "logs/memory/memory_estimates.log",
    benchmark:
        "benchmarks/memory/memory_estimates.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: config["threads"]
    resources:
        mem_mb=2000,
    message:
        "planning memory: every strategy's own code, on tensors without data"
    shell:
        "paramscope memory-estimates {params.folder} {params.asked} --workers {threads}"
        " > {log} 2>&1"


rule model_device_matrix:
    input:
        f"{PLANNED}/plan.parquet",
    output:
        png=report(
            f"{PLANNED}/figures/model_device_matrix.png",
            caption="../workflow/report/model_device_matrix.rst",
            category="Memory",
            labels={"figure": "what fits which device"},
        ),
        pdf=f"{PLANNED}/figures/model_device_matrix.pdf",
    params:
        code=code_digest("cli.model_device_matrix"),
    log:
        "logs/memory/model_device_matrix.log",
    benchmark:
        "benchmarks/memory/model_device_matrix.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: what to take for each task, by model and device"
    shell:
        "paramscope model-device-matrix {output.png} --plan {input} > {log} 2>&1"


rule memory_plan:
    input:
        plan=f"{PLANNED}/plan.parquet",
        document=f"{PLANNED}/plan.md",
        matrix=f"{PLANNED}/figures/model_device_matrix.png",
    output:
        png=report(
            f"{PLANNED}/figures/memory_plan.png",
            caption="../workflow/report/memory_plan.rst",
            category="Memory",
            labels={"figure": "memory by strategy"},
        ),
        pdf=f"{PLANNED}/figures/memory_plan.pdf",
    params:
        code=code_digest("cli.memory_plan"),
        models=repeated("model", MEMORY["shown"]),
    log:
        "logs/memory/memory_plan.log",
    benchmark:
        "benchmarks/memory/memory_plan.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: what strategies take, by part, and what devices have"
    shell:
        "paramscope memory-plan {output.png} --plan {input.plan} {params.models} > {log} 2>&1"


rule plan_accuracy:
    output:
        multiext(f"{PLANNED}/accuracy.", "parquet", "md"),
    params:
        code=code_digest("cli.plan_accuracy"),
        folder=subpath(output[0], parent=True),
    log:
        "logs/memory/plan_accuracy.log",
    benchmark:
        "benchmarks/memory/plan_accuracy.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: workflow.cores
    resources:
        mem_mb=3000,
    message:
        "holding plans to real runs of every strategy, alone on the machine"
    shell:
        "paramscope plan-accuracy {params.folder} > {log} 2>&1"
