"""The one metric of tiny_code.yaml."""

import os


def process_results(doc, results):
    return {"permitted": float(os.environ.get("HF_ALLOW_CODE_EVAL") == "1")}
