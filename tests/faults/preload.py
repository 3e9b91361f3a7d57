"""What a warm process holds in memory before commands are forked from it; see warm.py."""

from importlib import import_module

from impart_flows.cli.surroundings import prepare

prepare()  # Prefect reads its settings when it is imported
for _name in (
    "prefect.main",
    "pytest",
    "s3fs",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "optuna.samplers",
    "impart_core.apply.dense",
    "impart_core.lineage.graph",
    "impart_core.store.gc",
    "impart_core.store.verify",
    "impart_flows.evaluate",
    "impart_flows.search",
    "impart_flows.zoo",
    "tests.support",
):
    import_module(_name)
