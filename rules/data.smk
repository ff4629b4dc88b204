"""Text: from a source to five splits that a blind gate has passed.

In: the standard library's documentation, local files, or those of a dataset on the hub. Out: results/{model}/corpus/.
"""


rule corpus:
    input:
        corpus_files,
    output:
        expand(
            "results/{{model}}/corpus/{split}.parquet",
            split=["public", "member", "nonmember", "calibration", "evaluation"],
        ),
        gate="results/{model}/corpus/gate.json",
    params:
        code=code_digest("cli.corpus"),
        folder=subpath(output.gate, parent=True),
        source=config["corpus"]["source"],
        paths=corpus_options,
        counts=options(config["corpus"]["documents"]),
        gate=options(config["corpus"]["gate"]),
        chunk_characters=config["corpus"]["chunk_characters"],
        seed=run_seed,
    log:
        "logs/{model}/corpus.log",
    benchmark:
        "benchmarks/{model}/corpus.tsv"
    conda:
        "../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    message:
        "dealing documents from {params.source} to five splits"
    shell:
        "paramscope corpus {params.folder} --source {params.source} {params.paths}"
        " --chunk-characters {params.chunk_characters} {params.counts} {params.gate}"
        " --seed {params.seed} > {log} 2>&1"
