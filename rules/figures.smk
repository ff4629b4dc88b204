"""Figures: one rule each, asked for by its name or by its path.

In: tables and records under results/{model}/. Out: results/{model}/figures/.
"""


rule curvature_quality:
    input:
        spotcheck=f"{RESULTS}/curvature/spotcheck.parquet",
        draws=f"{RESULTS}/curvature/spotcheck_draws.parquet",
        quality=f"{RESULTS}/curvature/spotcheck.json",
    output:
        png=report(
            f"{RESULTS}/figures/curvature_quality.png",
            caption="../workflow/report/curvature_quality.rst",
            category="Curvature",
            labels={"figure": "curvature quality", "model": MODEL},
        ),
        pdf=f"{RESULTS}/figures/curvature_quality.pdf",
    params:
        code=code_digest("cli.curvature_quality"),
        model=MODEL,
    log:
        f"logs/{MODEL}/curvature_quality.log",
    benchmark:
        f"benchmarks/{MODEL}/curvature_quality.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: estimated curvature against exact entries"
    shell:
        "paramscope curvature-quality {output.png} --spotcheck {input.spotcheck}"
        " --spotcheck-draws {input.draws} --quality {input.quality}"
        " --model {params.model} > {log} 2>&1"


rule curvature_by_layer:
    input:
        f"{RESULTS}/curvature/summary.parquet",
    output:
        png=report(
            f"{RESULTS}/figures/curvature_by_layer.png",
            caption="../workflow/report/curvature_by_layer.rst",
            category="Curvature",
            labels={"figure": "curvature by layer", "model": MODEL},
        ),
        pdf=f"{RESULTS}/figures/curvature_by_layer.pdf",
    params:
        code=code_digest("cli.curvature_by_layer"),
        model=MODEL,
    log:
        f"logs/{MODEL}/curvature_by_layer.log",
    benchmark:
        f"benchmarks/{MODEL}/curvature_by_layer.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: curvature by layer and kind of tensor"
    shell:
        "paramscope curvature-by-layer {output.png} --summary {input}"
        " --model {params.model} > {log} 2>&1"


rule umap_visualization:
    input:
        units=f"{RESULTS}/geometry/units.parquet",
        embedding=f"{RESULTS}/geometry/embedding.parquet",
        quality=f"{RESULTS}/geometry/embedding.json",
        partition=DEFAULT_PARTITION,
    output:
        png=report(
            f"{RESULTS}/figures/umap_visualization.png",
            caption="../workflow/report/umap_visualization.rst",
            category="Geometry",
            labels={"figure": "umap visualization", "model": MODEL},
        ),
        pdf=f"{RESULTS}/figures/umap_visualization.pdf",
    params:
        code=code_digest("cli.umap_visualization"),
        model=MODEL,
    log:
        f"logs/{MODEL}/umap_visualization.log",
    benchmark:
        f"benchmarks/{MODEL}/umap_visualization.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: units in the UMAP plane"
    shell:
        "paramscope umap-visualization {output.png} --units {input.units} --embedding {input.embedding}"
        " --quality {input.quality} --partition {input.partition}"
        " --model {params.model} > {log} 2>&1"


rule parameter_clustering:
    input:
        units=f"{RESULTS}/geometry/units.parquet",
        partition=DEFAULT_PARTITION,
    output:
        png=report(
            f"{RESULTS}/figures/parameter_clustering.png",
            caption="../workflow/report/parameter_clustering.rst",
            category="Geometry",
            labels={"figure": "parameter clustering", "model": MODEL},
        ),
        pdf=f"{RESULTS}/figures/parameter_clustering.pdf",
    params:
        code=code_digest("cli.parameter_clustering"),
        model=MODEL,
    log:
        f"logs/{MODEL}/parameter_clustering.log",
    benchmark:
        f"benchmarks/{MODEL}/parameter_clustering.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: classes in feature space and by layer"
    shell:
        "paramscope parameter-clustering {output.png} --units {input.units} --partition {input.partition}"
        " --model {params.model} > {log} 2>&1"


rule prm_phase_diagram:
    input:
        RESPONSES,
    output:
        png=report(
            f"{RESULTS}/figures/prm_phase_diagram.png",
            caption="../workflow/report/prm_phase_diagram.rst",
            category="Response",
            labels={"figure": "prm phase diagram", "model": MODEL},
        ),
        pdf=f"{RESULTS}/figures/prm_phase_diagram.pdf",
    params:
        code=code_digest("cli.prm_phase_diagram"),
        given=repeated("responses", RESPONSES),
        model=MODEL,
    log:
        f"logs/{MODEL}/prm_phase_diagram.log",
    benchmark:
        f"benchmarks/{MODEL}/prm_phase_diagram.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: perplexity lost against membership lost"
    shell:
        "paramscope prm-phase-diagram {output.png} {params.given}"
        " --model {params.model} > {log} 2>&1"


rule noise_response_curves:
    input:
        RESPONSES,
    output:
        png=report(
            f"{RESULTS}/figures/noise_response_curves.png",
            caption="../workflow/report/noise_response_curves.rst",
            category="Response",
            labels={"figure": "noise response curves", "model": MODEL},
        ),
        pdf=f"{RESULTS}/figures/noise_response_curves.pdf",
    params:
        code=code_digest("cli.noise_response_curves"),
        given=repeated("responses", RESPONSES),
        model=MODEL,
    log:
        f"logs/{MODEL}/noise_response_curves.log",
    benchmark:
        f"benchmarks/{MODEL}/noise_response_curves.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: responses over the noise scale"
    shell:
        "paramscope noise-response-curves {output.png} {params.given}"
        " --model {params.model} > {log} 2>&1"


rule statistical_summary:
    input:
        STATISTICS,
    output:
        png=report(
            f"{RESULTS}/figures/statistical_summary.png",
            caption="../workflow/report/statistical_summary.rst",
            category="Response",
            labels={"figure": "statistical summary", "model": MODEL},
        ),
        pdf=f"{RESULTS}/figures/statistical_summary.pdf",
    params:
        code=code_digest("cli.statistical_summary"),
        given=repeated("statistics", STATISTICS),
        model=MODEL,
    log:
        f"logs/{MODEL}/statistical_summary.log",
    benchmark:
        f"benchmarks/{MODEL}/statistical_summary.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: effect sizes and separation"
    shell:
        "paramscope statistical-summary {output.png} {params.given}"
        " --model {params.model} > {log} 2>&1"


rule separation:
    input:
        STATISTICS,
    output:
        png=report(
            f"{RESULTS}/figures/separation.png",
            caption="../workflow/report/separation.rst",
            category="Response",
            labels={"figure": "separation scores", "model": MODEL},
        ),
        pdf=f"{RESULTS}/figures/separation.pdf",
    params:
        code=code_digest("cli.separation"),
        given=repeated("statistics", STATISTICS),
        model=MODEL,
    log:
        f"logs/{MODEL}/separation.log",
    benchmark:
        f"benchmarks/{MODEL}/separation.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: separation scores against random partitions"
    shell:
        "paramscope separation {output.png} {params.given}" " --model {params.model} > {log} 2>&1"


rule membership_scores:
    input:
        scores=f"{RESULTS}/membership/scores.parquet",
        summary=f"{RESULTS}/membership/summary.json",
        gate=f"{RESULTS}/corpus/gate.json",
    output:
        png=report(
            f"{RESULTS}/figures/membership_scores.png",
            caption="../workflow/report/membership_scores.rst",
            category="Response",
            labels={"figure": "membership scores", "model": MODEL},
        ),
        pdf=f"{RESULTS}/figures/membership_scores.pdf",
    params:
        code=code_digest("cli.membership_scores"),
        model=MODEL,
    log:
        f"logs/{MODEL}/membership_scores.log",
    benchmark:
        f"benchmarks/{MODEL}/membership_scores.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: membership inference on the target"
    shell:
        "paramscope membership-scores {output.png} --scores {input.scores}"
        " --summary {input.summary} --gate {input.gate} --model {params.model} > {log} 2>&1"


rule layer_responses:
    input:
        f"{RESULTS}/prm/tensors.responses.parquet",
    output:
        png=report(
            f"{RESULTS}/figures/layer_responses.png",
            caption="../workflow/report/layer_responses.rst",
            category="Response",
            labels={"figure": "responses by layer", "model": MODEL},
        ),
        pdf=f"{RESULTS}/figures/layer_responses.pdf",
    params:
        code=code_digest("cli.layer_responses"),
        model=MODEL,
    log:
        f"logs/{MODEL}/layer_responses.log",
    benchmark:
        f"benchmarks/{MODEL}/layer_responses.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=500,
    message:
        "figure: noise in one weight at a time, by layer"
    shell:
        "paramscope layer-responses {output.png} --responses {input}"
        " --model {params.model} > {log} 2>&1"
