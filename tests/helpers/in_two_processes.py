"""torch, `DistributedDataParallel`: `python -m helpers.in_two_processes FOLDER RANK` is one of two processes."""

import sys
from pathlib import Path

import numpy as np

from helpers.training import ROWS, STEPS, batches, language_model, left_by_training


def train(module, lm, rows):
    """torch's own loop over `rows` of each batch; returns what training leaves of them."""
    import torch

    x, y = batches()
    by_step = {name: array.reshape(STEPS, ROWS, *array.shape[1:])[:, rows] for name, array in {**x, "y": y}.items()}
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for step in range(STEPS):
        batch = {name: torch.from_numpy(array[step]) for name, array in by_step.items()}
        targets = batch.pop("y").long()
        logits = module(batch, training=True)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return left_by_training(lm)


def main(folder, rank):
    import torch.distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    half = ROWS // 2
    lm = language_model("gpt2", half, lora=True)
    left = train(DistributedDataParallel(lm), lm, slice(rank * half, (rank + 1) * half))
    np.savez(folder / f"{rank}.npz", **left)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
