"""The plain way to federate a PET model: Flower's quickstart for PyTorch, with peft in the model.

As Flower's documentation writes it: each message builds the model anew, loads the weights that came with it,
reads its partition through a `DataLoader`, trains or evaluates, and sends weights and metrics back; FedAvg
asks all nodes to train and then to evaluate, every round, under the simulation engine on Ray. Two things are
done for it that the quickstart leaves to the reader: one core per worker, so that as many sites train at once
as there are cores, and only trained tensors travel.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import common.model.torchvision_shim  # noqa: F401  isort: skip  (before timm and peft)
import timm
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from simulations.benchmarks.quickstart_task import Outcome, Task

Sample = tuple[Tensor, Tensor]


class Radiographs(Dataset[Sample]):
    """One split of a site, normalised image by image as torchvision's transforms do."""

    def __init__(self, task: Task, partition: int, split: str) -> None:
        with np.load(task.arrays(partition)) as arrays:
            self.pixels: NDArray[np.uint8] = arrays[f"{split}-pixels"]
            self.labels: NDArray[np.float32] = arrays[f"{split}-labels"]
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (task.mean, task.std))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Sample:
        grey = torch.from_numpy(self.pixels[index]).float().div(255).expand(len(self.mean), -1, -1)
        return (grey - self.mean) / self.std, torch.from_numpy(self.labels[index])


def get_model(task: Task) -> Any:
    """Build the pretrained network with a new head, and LoRA in it unless the head alone is trained."""
    size = task.image_size
    net: Any = timm.create_model(task.architecture, img_size=size, num_classes=len(task.findings))
    base = load_file(task.weights)
    net.load_state_dict({**net.state_dict(), **base})
    torch.manual_seed(task.seed)
    nn.init.normal_(net.head.weight, std=0.01)
    nn.init.zeros_(net.head.bias)
    if task.last == 0:
        net.requires_grad_(False)
        net.head.requires_grad_(True)
        return net
    adapted = range(len(net.blocks) - task.last, len(net.blocks))
    layers = [
        f"blocks.{i}.{layer}" for i in adapted for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    described = LoraConfig(
        r=task.rank,
        lora_alpha=task.alpha,  # type: ignore[arg-type]  # peft says int, computes with float
        target_modules=layers,
        modules_to_save=["head"],
    )
    return get_peft_model(net, described)


def get_weights(model: Any, task: Task) -> dict[str, Tensor]:
    """Return the tensors that travel."""
    if task.last == 0:
        return dict(model.head.state_dict())
    return dict(get_peft_model_state_dict(model))


def set_weights(model: Any, task: Task, weights: dict[str, Tensor]) -> None:
    """Load the tensors that came."""
    if task.last == 0:
        model.head.load_state_dict(weights)
    else:
        set_peft_model_state_dict(model, weights)


def train(model: Any, task: Task, loader: DataLoader[Sample], device: torch.device) -> float:
    """Train for the local epochs and return the mean loss."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=task.lr, weight_decay=0.0)
    criterion = nn.BCEWithLogitsLoss()
    model.to(device).train()
    total, steps = 0.0, 0
    for _ in range(task.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=task.bf16):
                logits = model(images.to(device))
            loss = criterion(logits.float(), labels.to(device))
            loss.backward()
            optimizer.step()
            total, steps = total + loss.item(), steps + 1
    return total / max(steps, 1)


def test(model: Any, task: Task, loader: DataLoader[Sample], device: torch.device) -> tuple[float, float]:
    """Return loss and mean AUROC over the findings that have both classes."""
    model.to(device).eval()
    said, told = [], []
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=task.bf16):
        for images, labels in loader:
            said.append(model(images.to(device)).float().cpu())
            told.append(labels)
    logits, truth = torch.cat(said), torch.cat(told)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, truth).item()
    both = [j for j in range(truth.shape[1]) if 0 < truth[:, j].sum() < len(truth)]
    return loss, float(np.mean([roc_auc_score(truth[:, j], logits[:, j]) for j in both]))


def client_app(task: Task) -> ClientApp:
    """Return the quickstart's ClientApp."""
    app = ClientApp()
    device = torch.device(task.device)

    def prepared(message: Message) -> Any:
        torch.set_num_threads(1)
        model = get_model(task)
        record: Any = message.content["arrays"]
        set_weights(model, task, record.to_torch_state_dict())
        return model

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        """Start the worker: what it imports is not counted."""
        return Message(RecordDict(), reply_to=message)

    @app.train()
    def on_train(message: Message, context: Context) -> Message:
        began = time.perf_counter()
        model = prepared(message)
        data = Radiographs(task, int(context.node_config["partition-id"]), "train")
        stepping = time.perf_counter()
        loss = train(model, task, DataLoader(data, batch_size=task.batch, shuffle=True), device)
        ended = time.perf_counter()
        told: dict[str, Any] = {
            "loss": loss,
            "num-examples": len(data),
            "steps": ended - stepping,
            "all": ended - began,
        }
        content = RecordDict({"arrays": ArrayRecord(get_weights(model, task)), "metrics": MetricRecord(told)})
        return Message(content, reply_to=message)

    @app.evaluate()
    def on_evaluate(message: Message, context: Context) -> Message:
        model = prepared(message)
        data = Radiographs(task, int(context.node_config["partition-id"]), "validation")
        loss, auroc = test(model, task, DataLoader(data, batch_size=task.batch), device)
        told = MetricRecord({"loss": loss, "auroc": auroc, "num-examples": len(data)})
        return Message(RecordDict({"metrics": told}), reply_to=message)

    return app


def run_pattern(task: Task) -> Outcome:
    """Run the whole simulation; the clock starts when Ray and its workers are up."""
    from flwr.simulation import run_simulation

    warnings.filterwarnings("ignore")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    outcomes: list[Outcome] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = list(grid.get_node_ids())
        while len(nodes) < task.sites:
            time.sleep(0.1)
            nodes = list(grid.get_node_ids())
        list(grid.send_and_receive([Message(RecordDict(), node, MessageType.QUERY) for node in nodes]))
        began = time.perf_counter()
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0)
        initial = ArrayRecord(get_weights(get_model(task), task))
        result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=task.rounds)
        ended = time.perf_counter()
        last, trained = (
            metrics[task.rounds]
            for metrics in (result.evaluate_metrics_clientapp, result.train_metrics_clientapp)
        )
        numbers = {name: float(last[name]) for name in ("loss", "auroc")}  # type: ignore[arg-type]
        share = float(trained["steps"]) / float(trained["all"])  # type: ignore[arg-type]
        outcomes.append(Outcome(ended - began, numbers["loss"], numbers["auroc"], share))

    run_simulation(
        server_app=server,
        client_app=client_app(task),
        num_supernodes=task.sites,
        backend_config={
            "init_args": {
                "num_cpus": task.cores,
                "include_dashboard": False,
                "logging_level": "ERROR",
                "log_to_driver": False,
            },
            "client_resources": {"num_cpus": 1, "num_gpus": task.gpus_per_site},
        },
    )
    return outcomes[0]
