"""What DP-SGD costs, method by method, and what privacy costs and buys on the run's model.

In: results/{model}/base/, target/, corpus/. Out: results/dpsgd/{workload}/, results/{model}/dpsgd/.
"""


rule dpsgd_profile:
    output:
        "results/dpsgd/{workload}/{method}.json",
    wildcard_constraints:
        workload="|".join(map(re.escape, PRIVACY["known"])),
        method=r"[a-z_]+(\+[a-z0-9]+)*",
    params:
        code=code_digest("cli.dpsgd_profile"),
        workload=workload_options,
        profile=profile_options,
        seed=config["seed"],
        compute=compute_options(config["threads"]),
    log:
        "logs/dpsgd/{workload}/{method}.log",
    benchmark:
        "benchmarks/dpsgd/{workload}/{method}.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: workflow.cores
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("dpsgd_profile", 4000),
    message:
        "profiling {wildcards.method} on {wildcards.workload}, alone on the machine"
    shell:
        "paramscope dpsgd-profile {output} --method {wildcards.method} {params.workload}"
        " {params.profile} --record-refusal --seed {params.seed} {params.compute} > {log} 2>&1"


rule dpsgd_results:
    input:
        PROFILED,
    output:
        multiext(f"{PROFILES}/", "summary.txt", "table.tex", "profiles.parquet"),
    params:
        code=code_digest("cli.dpsgd_results"),
        profiles=profile_flags,
        folder=subpath(output[0], parent=True),
        workload=WORKLOAD,
    log:
        f"logs/dpsgd/{WORKLOAD}/dpsgd_results.log",
    benchmark:
        f"benchmarks/dpsgd/{WORKLOAD}/dpsgd_results.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        f"gathering the profiles of {WORKLOAD}"
    shell:
        "paramscope dpsgd-results {params.folder} {params.profiles} --workload {params.workload}"
        " > {log} 2>&1"


rule memory_breakdown_comparison:
    input:
        PROFILED,
    output:
        png=report(
            f"{PROFILES}/figures/memory_breakdown_comparison.png",
            caption="../workflow/report/memory_breakdown_comparison.rst",
            category="DP-SGD",
            labels={"figure": "memory by part", "workload": WORKLOAD},
        ),
        pdf=f"{PROFILES}/figures/memory_breakdown_comparison.pdf",
    params:
        code=code_digest("cli.memory_breakdown_comparison"),
        profiles=profile_flags,
        workload=WORKLOAD,
    log:
        f"logs/dpsgd/{WORKLOAD}/memory_breakdown_comparison.log",
    benchmark:
        f"benchmarks/dpsgd/{WORKLOAD}/memory_breakdown_comparison.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: memory at the peak, by part and method"
    shell:
        "paramscope memory-breakdown-comparison {output.png} {params.profiles}"
        " --workload {params.workload} > {log} 2>&1"


rule memory_timeline:
    input:
        PROFILED,
    output:
        png=report(
            f"{PROFILES}/figures/memory_timeline.png",
            caption="../workflow/report/memory_timeline.rst",
            category="DP-SGD",
            labels={"figure": "memory over an iteration", "workload": WORKLOAD},
        ),
        pdf=f"{PROFILES}/figures/memory_timeline.pdf",
    params:
        code=code_digest("cli.memory_timeline"),
        profiles=profile_flags,
        workload=WORKLOAD,
    log:
        f"logs/dpsgd/{WORKLOAD}/memory_timeline.log",
    benchmark:
        f"benchmarks/dpsgd/{WORKLOAD}/memory_timeline.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: memory over an iteration, by method"
    shell:
        "paramscope memory-timeline {output.png} {params.profiles}"
        " --workload {params.workload} > {log} 2>&1"


rule performance_tradeoff:
    input:
        PROFILED,
    output:
        png=report(
            f"{PROFILES}/figures/performance_tradeoff.png",
            caption="../workflow/report/performance_tradeoff.rst",
            category="DP-SGD",
            labels={"figure": "memory against time", "workload": WORKLOAD},
        ),
        pdf=f"{PROFILES}/figures/performance_tradeoff.pdf",
    params:
        code=code_digest("cli.performance_tradeoff"),
        profiles=profile_flags,
        workload=WORKLOAD,
    log:
        f"logs/dpsgd/{WORKLOAD}/performance_tradeoff.log",
    benchmark:
        f"benchmarks/dpsgd/{WORKLOAD}/performance_tradeoff.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: memory against time, by method"
    shell:
        "paramscope performance-tradeoff {output.png} {params.profiles}"
        " --workload {params.workload} > {log} 2>&1"


rule dp_finetune:
    input:
        base=multiext("results/{model}/base/", *WEIGHTS),
        member="results/{model}/corpus/member.parquet",
    output:
        folder=directory("results/{model}/dpsgd/epsilon-{epsilon}"),
        private="results/{model}/dpsgd/epsilon-{epsilon}.private.json",
    wildcard_constraints:
        epsilon=r"[0-9][0-9.e+-]*",
    params:
        code=code_digest("cli.dp_finetune"),
        base=base_folder,
        budget=private_options,
        length=config["length"],
        seed=run_seed,
        compute=compute_options(1),
    log:
        "logs/{model}/dp_finetune/epsilon-{epsilon}.log",
    benchmark:
        "benchmarks/{model}/dp_finetune/epsilon-{epsilon}.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: 1
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("dp_finetune"),
    message:
        "finetuning {wildcards.model} privately, at epsilon {wildcards.epsilon}"
    shell:
        "paramscope dp-finetune {params.base} {input.member} {output.folder}"
        " --output-private {output.private} {params.budget} --length {params.length}"
        " --seed {params.seed} {params.compute} > {log} 2>&1"


rule privacy_scores:
    input:
        base=multiext("results/{model}/base/", *WEIGHTS),
        target=multiext("results/{model}/target/", *WEIGHTS),
        private=private_folders,
        member="results/{model}/corpus/member.parquet",
        nonmember="results/{model}/corpus/nonmember.parquet",
        evaluation="results/{model}/corpus/evaluation.parquet",
    output:
        "results/{model}/dpsgd/privacy_utility.json",
    params:
        code=code_digest("cli.privacy_scores"),
        base=base_folder,
        target=target_folder,
        private=lambda wildcards: repeated("private", private_folders(wildcards)),
        bootstrap=config["membership"]["bootstrap"],
        length=config["length"],
        seed=run_seed,
        compute=compute_options(config["threads"]),
    log:
        "logs/{model}/privacy_scores.log",
    benchmark:
        "benchmarks/{model}/privacy_scores.tsv"
    conda:
        COMPUTE_ENVIRONMENT
    threads: config["threads"]
    resources:
        gpu=stage_gpus,
        mem_mb=stage_memory("privacy_scores"),
    message:
        "perplexity and membership AUC of {wildcards.model}: base, private models, target"
    shell:
        "paramscope privacy-scores {output} --base {params.base} --target {params.target}"
        " {params.private} --member {input.member} --nonmember {input.nonmember}"
        " --evaluation {input.evaluation} --model {wildcards.model}"
        " --bootstrap {params.bootstrap} --length {params.length} --seed {params.seed}"
        " {params.compute} > {log} 2>&1"


rule privacy_utility:
    input:
        f"{RESULTS}/dpsgd/privacy_utility.json",
    output:
        png=report(
            f"{RESULTS}/dpsgd/figures/privacy_utility.png",
            caption="../workflow/report/privacy_utility.rst",
            category="DP-SGD",
            labels={"figure": "privacy and utility", "model": MODEL},
        ),
        pdf=f"{RESULTS}/dpsgd/figures/privacy_utility.pdf",
    params:
        code=code_digest("cli.privacy_utility"),
        model=MODEL,
    log:
        f"logs/{MODEL}/privacy_utility.log",
    benchmark:
        f"benchmarks/{MODEL}/privacy_utility.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: what privacy costs and buys"
    shell:
        "paramscope privacy-utility {output.png} --record {input} --model {params.model}"
        " > {log} 2>&1"


rule dpsgd:
    input:
        dpsgd_outputs,
