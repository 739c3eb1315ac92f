"""An encoder from a folder says what transformers says; nothing the folder brings is run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from common.config import RunConfig
from common.errors import WeightsError
from common.model.text.encoder import TextTower, load_text_tower

Folder = Callable[..., Path]
Config = Callable[..., RunConfig]

TEXTS = ("No pleural effusion.", "", "There is a large left effusion, with edema and a line", "Edema")


def transformers_says(folder: Path, kind: Any = None) -> tuple[Any, Any]:
    """Return transformers' own output on the texts that are not blank, and their mask."""
    net = (kind or transformers.AutoModel).from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    given = tokenizer([t for t in TEXTS if t], padding=True, return_tensors="pt")
    with torch.no_grad():
        out = net(
            input_ids=given["input_ids"], attention_mask=given["attention_mask"], output_hidden_states=True
        )
    return out, given["attention_mask"].bool()


def ours(tower: TextTower) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = tower.tokenize(TEXTS, 32)
    mask = torch.from_numpy(tokens.mask)
    with torch.no_grad():
        hidden = tower.hidden(torch.from_numpy(tokens.ids), mask)
        return hidden, tower.pooled(hidden, mask), mask


@pytest.mark.parametrize(
    ("encoder", "family"),
    [("bert", "bert"), ("minilm", "bert"), ("distilbert", "distilbert"), ("bio-clinicalbert", "bert")],
)
@pytest.mark.parametrize("masked_lm", [False, True])
def test_hidden_states_are_those_of_transformers(
    make_folder: Folder, text_config: Config, encoder: str, family: str, masked_lm: bool
) -> None:
    folder = make_folder(family, masked_lm=masked_lm)
    tower = load_text_tower(text_config(encoder, folder))
    hidden, pooled, mask = ours(tower)
    kind = getattr(transformers, "BertModel" if family == "bert" else "DistilBertModel")
    theirs, seen = transformers_says(folder, kind)
    present = [i for i, text in enumerate(TEXTS) if text]
    expected = theirs.last_hidden_state
    if encoder == "bio-clinicalbert":
        expected = torch.stack(theirs.hidden_states[-4:]).sum(dim=0)
    assert (mask[present] == seen).all()
    torch.testing.assert_close(hidden[present][seen], expected[seen], atol=1e-5, rtol=1e-5)
    for row, text in enumerate(present):
        torch.testing.assert_close(pooled[text], expected[row][seen[row]].mean(dim=0), atol=1e-5, rtol=1e-5)
    assert tower.width == 24
    assert tower.family == family


def test_cxr_bert_is_a_bert_whose_own_code_is_not_run(
    make_folder: Folder, text_config: Config, tmp_path: Path
) -> None:
    folder = make_folder(masked_lm=True)
    theirs, seen = transformers_says(folder, transformers.BertModel)
    tensors = load_file(folder / "model.safetensors")
    assert any(name.startswith("bert.encoder.") for name in tensors)
    tensors["cls_projection_head.dense_to_hidden.weight"] = torch.ones(4, 24)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sprung = tmp_path / "sprung"
    (folder / "modeling_cxrbert.py").write_text(f"open({str(sprung)!r}, 'w')\n")
    described = json.loads((folder / "config.json").read_text())
    described |= {
        "model_type": "cxr-bert",
        "architectures": ["CXRBertModel"],
        "projection_size": 4,
        "auto_map": {"AutoConfig": "modeling_cxrbert.X", "AutoModel": "modeling_cxrbert.X"},
    }
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CXRBertTokenizer",
                "do_lower_case": True,
                "auto_map": {"AutoTokenizer": ["modeling_cxrbert.X", None]},
            }
        )
    )
    tower = load_text_tower(text_config("cxr-bert", folder))
    hidden, pooled, _ = ours(tower)
    present = [i for i, text in enumerate(TEXTS) if text]
    torch.testing.assert_close(hidden[present][seen], theirs.last_hidden_state[seen], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled[present], theirs.last_hidden_state[:, 0], atol=1e-5, rtol=1e-5)
    assert not sprung.exists()


def test_a_half_precision_file_is_computed_in_full(make_folder: Folder, text_config: Config) -> None:
    folder = make_folder()
    halves = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((folder / "config.json").read_text()) | {"dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(described))
    tower = load_text_tower(text_config("bert", folder))
    assert {p.dtype for p in tower.parameters()} == {torch.float32}


def test_dropout_is_off_also_while_training(make_folder: Folder, text_config: Config) -> None:
    for family in ("bert", "distilbert"):
        tower = load_text_tower(text_config(family, make_folder(family)))
        still, _, _ = ours(tower)
        tower.train()
        training, _, _ = ours(tower)
        assert torch.equal(still, training)


def test_a_text_is_cut_where_the_plan_says(make_folder: Folder, text_config: Config) -> None:
    folder = make_folder()
    words = (folder / "vocab.txt").read_text().split()
    tower = load_text_tower(text_config("bert", folder))
    tokens = tower.tokenize(["no effusion " * 40, "no"], 8)
    assert tokens.ids.shape == (2, 8)
    assert tokens.ids[0, 0] == tokens.ids[1, 0] == words.index("[CLS]")
    assert tokens.ids[0, -1] == words.index("[SEP]")
    assert tokens.mask.sum(axis=1).tolist() == [8, 3]


def test_loading_leaves_the_global_generator_alone(make_folder: Folder, text_config: Config) -> None:
    folder = make_folder()
    before = torch.get_rng_state()
    load_text_tower(text_config("bert", folder))
    load_text_tower(text_config())
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------- refused


def refused(config: RunConfig, words: str) -> WeightsError:
    with pytest.raises(WeightsError, match=words) as caught:
        load_text_tower(config)
    return caught.value


def test_an_encoder_without_a_folder_says_whose_files_it_needs(text_config: Config) -> None:
    assert "emilyalsentzer/Bio_ClinicalBERT" in refused(text_config("bio-clinicalbert"), "needs a folder").fix


def test_a_folder_that_is_not_there(text_config: Config, tmp_path: Path) -> None:
    refused(text_config("bert", tmp_path / "absent"), "absent: no such folder")
    refused(text_config("bert", tmp_path), "not a folder in transformers layout")


def test_another_kind_of_encoder(make_folder: Folder, text_config: Config) -> None:
    error = refused(text_config("distilbert", make_folder("bert")), "not the weights of model.text_encoder")
    assert error.found == "model_type 'bert', expected 'distilbert'"
    assert not load_text_tower(text_config("bert", make_folder("bert", seed=1))).training


def test_pickles_are_refused_unread(make_folder: Folder, text_config: Config, tmp_path: Path) -> None:
    folder = make_folder()
    (folder / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"w": Trap()}, folder / "pytorch_model.bin")
    error = refused(text_config("bert", folder), "holds no weights in safetensors")
    assert "save_pretrained" in error.fix
    torch.save({"w": Trap()}, folder / "model.safetensors")
    refused(text_config("bert", folder), "not readable safetensors")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("keep", [0.5, 0.99, 0.001])
def test_a_truncated_file(make_folder: Folder, text_config: Config, keep: float) -> None:
    folder = make_folder()
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(len(data) * keep)])
    refused(text_config("bert", folder), "not readable safetensors")


def test_a_tensor_that_is_not_there_is_not_made_up(make_folder: Folder, text_config: Config) -> None:
    folder = make_folder()
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.3.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    error = refused(text_config("bert", folder), "1 tensors the architecture needs are not in the folder")
    assert "encoder.layer.3.output.dense.weight" in error.found


def test_a_config_of_another_size(make_folder: Folder, text_config: Config) -> None:
    folder = make_folder()
    described = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 44}
    (folder / "config.json").write_text(json.dumps(described))
    refused(text_config("bert", folder), "do not fit config.json")


@pytest.mark.parametrize("words", ["{", "[]", '"bert"', "[1, 2]"])
def test_a_broken_config(make_folder: Folder, text_config: Config, words: str) -> None:
    folder = make_folder()
    (folder / "config.json").write_text(words)
    refused(text_config("bert", folder), "not valid JSON|not the weights")


def test_a_folder_without_its_tokenizer(make_folder: Folder, text_config: Config) -> None:
    folder = make_folder()
    (folder / "vocab.txt").unlink()
    refused(text_config("bert", folder), "holds no tokenizer")


def test_a_tokenizer_of_other_weights(make_folder: Folder, text_config: Config) -> None:
    folder = make_folder()
    words = (folder / "vocab.txt").read_text().split()
    (folder / "vocab.txt").write_text("\n".join([*words, "more", "words"]) + "\n")
    error = refused(text_config("bert", folder), "not the one of these weights")
    assert error.found == f"{len(words) + 2} words, the weights know {len(words)}"


def test_a_broken_tokenizer(make_folder: Folder, text_config: Config) -> None:
    folder = make_folder()
    (folder / "tokenizer.json").write_text("{")
    refused(text_config("bert", folder), "tokenizer cannot be read")


# ---------------------------------------------------------------------- real weights


@pytest.mark.real_data
def test_published_minilm(real_data: Path, text_config: Config) -> None:
    folder = real_data / "weights" / "minilm-l6"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    tower = load_text_tower(text_config("minilm", folder, length=64))
    theirs, seen = transformers_says(folder)
    hidden, _, _ = ours(tower)
    present = [i for i, text in enumerate(TEXTS) if text]
    torch.testing.assert_close(hidden[present][seen], theirs.last_hidden_state[seen], atol=1e-4, rtol=1e-4)
    assert tower.width == 384
    assert len(tower.blocks) == 6
    assert sum(p.numel() for p in tower.parameters()) == 22_565_376
    tokens = tower.tokenize(["Pleural fluid.", "Pleural effusion.", "The train to Rome was late."], 64)
    mask = torch.from_numpy(tokens.mask)
    with torch.no_grad():
        said = tower.pooled(tower.hidden(torch.from_numpy(tokens.ids), mask), mask)
    said = torch.nn.functional.normalize(said, dim=-1)
    assert said[0] @ said[1] > 0.3 + said[0] @ said[2]
