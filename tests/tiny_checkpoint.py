"""A tiny LLaVA on disk, with a processor: what a user's ``--model`` is."""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from bench.tiny_families import FAMILIES, IMAGE

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image> {% else %} {{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} w5 {% endif %}"
)


def save_tiny_llava(folder: Path) -> None:
    """A model of 36 visual tokens an image, whose vocabulary is w0 ... w99."""
    FAMILIES["LLaVA"].model().save_pretrained(folder)
    words = {f"w{i}": i for i in range(100) if i != IMAGE} | {"<image>": IMAGE}
    words = {{0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>"}.get(i, word): i for word, i in words.items()}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, additional_special_tokens=["<image>"], padding_side="left"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"height": 24, "width": 24}, crop_size={"height": 24, "width": 24}),
        fast,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
