"""Published layouts give, under timm's names, the features the library they come from gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from common.errors import WeightsError
from common.model.convert import to_timm
from common.model.weights import load_weights

SIZE, WIDTH, HEADS, LAYERS = 32, 64, 2, 3
TINY = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "image_size": SIZE}


def shaken(model):
    """Give every parameter its own value: fresh biases are all zero and would hide a swap."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.2 * torch.rand(buffer.shape, generator=generator)
    return model.eval()


def picture(size=SIZE):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def same(net, theirs, size=SIZE):
    """Compare the features before the head."""
    x = picture(size)
    with torch.no_grad():
        ours = net.eval().forward_head(net.forward_features(x), pre_logits=True)
        torch.testing.assert_close(ours, theirs(x), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------- CLIP


def clip_parts():
    return CLIPVisionConfig(**TINY, patch_size=16, intermediate_size=128, projection_dim=16)


def openai_vit(name="vit_base_patch32_clip_quickgelu_224"):
    """PubMedCLIP's architecture as the zoo has it, made small."""
    return timm.create_model(
        name,
        img_size=SIZE,
        patch_size=16,
        embed_dim=WIDTH,
        depth=LAYERS,
        num_heads=HEADS,
        mlp_ratio=2,
        num_classes=2,
    )


def test_clip_s_vision_tower(tmp_path):
    theirs = shaken(CLIPVisionModel(clip_parts()))
    theirs.save_pretrained(tmp_path)
    net = openai_vit()
    load_weights(net, tmp_path, "head")
    same(net, lambda x: theirs(pixel_values=x).pooler_output)


def test_clip_with_its_text_tower_and_projections(tmp_path):
    text = CLIPTextConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, vocab_size=9
    )
    theirs = shaken(CLIPModel(CLIPConfig(text_config=text, vision_config=clip_parts(), projection_dim=16)))
    theirs.save_pretrained(tmp_path)
    net = openai_vit("vit_large_patch14_clip_quickgelu_224")
    load_weights(net, tmp_path, "head")
    same(net, lambda x: theirs.vision_model(pixel_values=x).pooler_output)


def test_another_activation_is_refused(tmp_path):
    """Every tensor would fit, and every feature be wrong: QuickGELU is OpenAI's alone."""
    shaken(CLIPVisionModel(clip_parts())).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="another activation") as caught:
        load_weights(openai_vit("vit_base_patch32_clip_224"), tmp_path, "head")
    assert "quick_gelu" in caught.value.found
    assert "GELU" in caught.value.found


# ---------------------------------------------------------------------- ViT and DINOv2


def dino():
    return Dinov2Config(**TINY, patch_size=8, mlp_ratio=3, layer_norm_eps=1e-6)


def tiny_dino(size=SIZE):
    """RAD-DINO's architecture as the zoo has it, made small."""
    return timm.create_model(
        "vit_base_patch14_dinov2",
        img_size=size,
        patch_size=8,
        embed_dim=WIDTH,
        depth=LAYERS,
        num_heads=HEADS,
        mlp_ratio=3,
        num_classes=2,
    )


@pytest.mark.parametrize("saved_as", ["transformers 5", "transformers 4"])
def test_dinov2_s_class_token(tmp_path, saved_as):
    theirs = shaken(Dinov2Model(dino()))
    if saved_as == "transformers 4":
        theirs.save_pretrained(tmp_path)
    else:
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    net = tiny_dino()
    load_weights(net, tmp_path, "head")
    same(net, lambda x: theirs(pixel_values=x).pooler_output)


def test_what_transformers_saves_differs_from_what_it_holds(tmp_path):
    """Else the two cases above would be one."""
    theirs = Dinov2Model(dino())
    theirs.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) != set(theirs.state_dict())


@pytest.mark.parametrize("names", ["held", "saved"])
def test_vit(tmp_path, names):
    config = ViTConfig(**TINY, patch_size=16, intermediate_size=128, layer_norm_eps=1e-6)
    theirs = shaken(ViTModel(config, add_pooling_layer=False))
    if names == "saved":
        theirs.save_pretrained(tmp_path)
    else:
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    net = VisionTransformer(
        img_size=SIZE, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS, mlp_ratio=2, num_classes=2
    )
    load_weights(net, tmp_path, "head")
    same(net, lambda x: theirs(pixel_values=x).last_hidden_state[:, 0])


def test_a_sharded_folder(tmp_path):
    theirs = shaken(Dinov2Model(dino()))
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    net = tiny_dino()
    load_weights(net, tmp_path, "head")
    same(net, lambda x: theirs(pixel_values=x).pooler_output)


def test_a_missing_shard_is_named(tmp_path):
    Dinov2Model(dino()).save_pretrained(tmp_path, max_shard_size="50KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(WeightsError, match="parts are missing") as caught:
        load_weights(tiny_dino(), tmp_path, "head")
    assert gone.name in caught.value.found


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"w": "../elsewhere.safetensors"}}', "{}", '{"weight_map": 3}']
)
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match="not an index"):
        load_weights(tiny_dino(), tmp_path, "head")


# ---------------------------------------------------------------------- Swin, MedCLIP


def tiny_swin():
    return SwinTransformer(
        img_size=64,
        patch_size=4,
        embed_dim=16,
        depths=(2, 2, 2),
        num_heads=(1, 2, 4),
        window_size=4,
        num_classes=2,
    )


def swin_config():
    return SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=4
    )


@pytest.mark.parametrize("kind", [SwinModel, SwinForImageClassification])
def test_swin(tmp_path, kind):
    theirs = shaken(kind(swin_config()))
    theirs.save_pretrained(tmp_path)
    net = tiny_swin()
    load_weights(net, tmp_path, "head.fc")
    same(net, lambda x: getattr(theirs, "swin", theirs)(pixel_values=x).pooler_output, 64)


class MedClip(torch.nn.Module):
    """The names in RyanWangZf/MedCLIP: both towers hold a ``model`` and a projection."""

    def __init__(self, vision, projection=None):
        super().__init__()
        self.vision_model = torch.nn.Module()
        self.vision_model.model = vision
        self.text_model = torch.nn.Module()
        self.text_model.model = torch.nn.Linear(3, 3)
        self.logit_scale = torch.nn.Parameter(torch.ones(()))
        if projection:
            self.vision_model.projection_head = torch.nn.Linear(*projection, bias=False)


@pytest.mark.parametrize("names", ["held", "saved"])
def test_medclip_s_swin(tmp_path, names):
    theirs = shaken(SwinModel(swin_config()))
    state = MedClip(theirs, (64, 8)).state_dict()
    if names == "saved":
        theirs.save_pretrained(tmp_path / "swin")
        old = load_file(tmp_path / "swin" / "model.safetensors")
        state = {f"vision_model.model.{n}": t for n, t in old.items()} | {
            "text_model.model.weight": torch.ones(3)
        }
    save_file(state, tmp_path / "medclip.safetensors")
    net = tiny_swin()
    load_weights(net, tmp_path / "medclip.safetensors", "head.fc")
    same(net, lambda x: theirs(pixel_values=x).pooler_output, 64)


@pytest.mark.parametrize("prefix", ["vision_model.model.", "vision_encoder.model.", "model.", ""])
def test_medclip_s_resnet_is_torchvision_s(tmp_path, prefix):
    """Its fc is the projection; torchvision and timm give the layers the same names."""
    torchvision = pytest.importorskip("torchvision")
    theirs = shaken(torchvision.models.resnet18())
    theirs.fc = torch.nn.Identity()
    state = {f"{prefix}{n}": t for n, t in theirs.state_dict().items()} | {
        f"{prefix}fc.weight": torch.ones(4, 512)
    }
    save_file(state, tmp_path / "resnet.safetensors")
    net = timm.create_model("resnet18", num_classes=2)
    load_weights(net, tmp_path / "resnet.safetensors", "fc")
    same(net, theirs, 64)


@pytest.mark.parametrize("old", [False, True], ids=["as held", "as published"])
def test_torchvision_s_densenet(tmp_path, old):
    torchvision = pytest.importorskip("torchvision")
    theirs = shaken(torchvision.models.DenseNet(8, (2, 2), 16, num_classes=3))
    state = theirs.state_dict()
    if old:  # densenet121-a639ec97.pth has norm.1 for norm1, and counts no batches
        state = {
            re.sub(r"(denselayer.*)\.(norm|conv)(\d)\.", r"\1.\2.\3.", name): tensor
            for name, tensor in state.items()
            if "num_batches" not in name
        }
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    save_file(state, tmp_path / "dense.safetensors")
    net = timm.create_model("densenet121", growth_rate=8, block_config=(2, 2), num_classes=2)
    load_weights(net, tmp_path / "dense.safetensors", "classifier")
    same(net, lambda x: torch.nn.functional.adaptive_avg_pool2d(theirs.features(x).relu(), 1).flatten(1), 64)


# ---------------------------------------------------------------------- open_clip, MAE, MRM, DataParallel


def tiny_vit(**over):
    kind = {"img_size": SIZE, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS, "num_classes": 2}
    return VisionTransformer(**kind | over)


def test_open_clip_around_timm(tmp_path):
    """BiomedCLIP: the trunk is timm's, beside it a projection and a BERT."""
    theirs = shaken(tiny_vit(num_classes=0))
    state = {f"visual.trunk.{n}": t for n, t in theirs.state_dict().items()} | {
        "visual.head.proj.weight": torch.ones(5, WIDTH),
        "text.transformer.embeddings.word_embeddings.weight": torch.ones(4, 3),
        "logit_scale": torch.ones(()),
    }
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    net = tiny_vit()
    load_weights(net, tmp_path, "head")
    same(net, theirs)


MAE_BESIDE = {
    "mask_token": torch.zeros(1, 1, 8),
    "decoder_embed.weight": torch.ones(8, WIDTH),
    "decoder_pos_embed": torch.zeros(1, 5, 8),
    "decoder_blocks.0.norm1.weight": torch.ones(8),
    "decoder_pred.bias": torch.ones(4),
}
MRM_BESIDE = MAE_BESIDE | {
    "bert_mlp.weight": torch.ones(6, WIDTH),
    "bert_encoder.bert.pooler.dense.bias": torch.ones(6),
}


@pytest.mark.parametrize("beside", [{}, MAE_BESIDE, MRM_BESIDE], ids=["encoder", "MAE", "MRM"])
def test_a_masked_autoencoder_s_encoder_read_by_the_mean_of_its_patches(tmp_path, beside):
    """MED-PEFT's reading: no norm before the mean, fc_norm behind it, no class token in it."""
    theirs = shaken(tiny_vit(num_classes=0))
    save_file(theirs.state_dict() | beside, tmp_path / "mae.safetensors")
    net = tiny_vit(global_pool="avg")
    load_weights(net, tmp_path / "mae.safetensors", "head")

    def read(x):
        tokens = theirs.blocks(theirs._pos_embed(theirs.patch_embed(x)))
        return theirs.norm(tokens[:, 1:].mean(1))

    same(net, read)


def test_data_parallel_s_prefix_goes(tmp_path):
    theirs = shaken(tiny_vit())
    save_file({f"module.{n}": t for n, t in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    net = tiny_vit()
    load_weights(net, tmp_path / "w.safetensors", "head")
    assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in net.state_dict().items() if "head" not in n)


def test_timm_s_own_layout_stays_as_it_is():
    state = tiny_vit().state_dict()
    assert to_timm(state) == state


@pytest.mark.parametrize("part", ["query", "value"])
def test_an_attention_layer_without_one_of_its_parts_is_named(tmp_path, part):
    theirs = ViTModel(ViTConfig(**TINY, intermediate_size=128), add_pooling_layer=False)
    theirs.save_pretrained(tmp_path)
    state = {
        n: t
        for n, t in load_file(tmp_path / "model.safetensors").items()
        if f"layer.1.attention.attention.{part}" not in n
    }
    with pytest.raises(WeightsError, match="not whole") as caught:
        to_timm(state)
    assert "blocks.1.attn.qkv" in caught.value.found


def test_a_pickled_folder_gets_the_command_that_converts_it(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match="holds no weights") as caught:
        load_weights(tiny_vit(), tmp_path, "head")
    assert "torch.load('pytorch_model.bin'" in caught.value.fix
    assert "weights_only=True" in caught.value.fix


def test_the_command_in_the_message_does_convert(tmp_path, monkeypatch):
    """Run as told, its file loads."""
    theirs = shaken(tiny_vit())
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "mae.pth")
    with pytest.raises(WeightsError) as caught:
        load_weights(tiny_vit(), tmp_path / "mae.pth", "head")
    script = caught.value.fix.partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)
    net = tiny_vit()
    load_weights(net, tmp_path / "model.safetensors", "head")
    assert torch.equal(net.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)
