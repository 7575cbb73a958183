"""Every run of a sweep file as a rule: `snakemake --profile profiles/local --config sweep=data/sweeps/microworld.yaml`."""

from neuronym.runs.folders import results_dir
from neuronym.runs.sweep import read_sweep

if "sweep" not in config:
    raise WorkflowError("which runs? add --config sweep=FILE.yaml, such as data/sweeps/microworld.yaml")
# jobs read the same file, whose networks the process that submits them has checked
rows = read_sweep(config["sweep"], networks=workflow.is_main_process)


rule all:
    input:
        [row.done for row in rows],


for row in rows:

    rule:
        name:
            row.rule
        input:
            list(row.after),
        output:
            row.done,
        log:
            results_dir() / "sweeps" / f"{row.rule}.log",
        params:
            command=row.shell,
        resources:
            mem_mb=row.memory,
            runtime=row.minutes,
            **({"gpu": row.gpus} if row.gpus else {}),
        shell:
            "{params.command} > {log} 2>&1"
