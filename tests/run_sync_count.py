"""How often are gradients reduced in one step of three micro-batches? Started on two processes by a test."""

import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from nn_train.config import load_config
from nn_train.preparation import prepare_data
from nn_train.runtime import leave_world, start_runtime
from nn_train.train import leave
from nn_train.training import Training

if __name__ == "__main__":
    config = load_config(None, sys.argv[2:])
    runtime = start_runtime(config.train)
    training = Training(config, prepare_data(config), runtime)
    model = runtime.accelerator.prepare(training.network)
    buckets: list[bool] = []

    def count(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buckets.append(bucket.is_last())
        return allreduce_hook(dist.group.WORLD, bucket)

    model.register_comm_hook(None, count)
    gradients = training.gradients(model)
    buckets.clear()  # that of the backward which settles their order
    counts = []
    for step in range(3):
        gradients.compute(step)
        counts.append(buckets.count(True))
    if runtime.is_main:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump({"micro_steps": training.share.num_micro_steps, "counts": counts}, file)
    leave_world()
    leave(0)
