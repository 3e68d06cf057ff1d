"""Answer as a vLLM 0.32 server would, with simulated timing: no model, no accelerator.

HTTP, SSE, error bodies, SIGTERM and metrics are held to recordings of a real server;
step times follow from the accelerator's bandwidth and FLOPs (`hardware`, `timing`).
Everything that can say so says "simulated": the boot log and `system_fingerprint`.
"""
