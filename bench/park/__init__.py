"""What it costs to park a session in Redis and to take it up again, at several lengths of its history, and what reading the same
text again would cost: `python -m bench.park`.

`--llama-python` is the Python of an environment of its own with llama-cpp-python and numpy. Where its AMX code crashes, build it
with `CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF"`, as was done for
bench/results/park.json.
"""
