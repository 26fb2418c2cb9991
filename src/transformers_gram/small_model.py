"""A small model with random weights, for the sample clips, tests and a first look: trained on a laptop in minutes."""

from collections import Counter
from collections.abc import Iterable

from transformers import (
    ASTConfig,
    BertConfig,
    BertTokenizer,
    PreTrainedTokenizerBase,
    ViTConfig,
    WhisperFeatureExtractor,
)

from .configuration_gram import GramConfig, paper_modalities
from .processing_gram import GramProcessor
from .video_processing_gram import GramVideoProcessor


IMAGE_SIZE = 64
MAX_TOKENS = 64
AUDIO_SECONDS = 2
MEL_BINS = 64
MEL_FRAMES_PER_SECOND = 100


def small_config(
    vocab_size: int, modalities: Iterable[str] = ("text", "video", "audio"), hidden_size: int = 96, num_layers: int = 3
) -> GramConfig:
    """A [`GramConfig`] of small encoders (BERT, ViT, AST) for 64-pixel frames and two seconds of sound."""
    size = {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * hidden_size,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        # The usual 0.02 is made for hundreds of units; with it a narrow vision encoder learns nothing for long.
        "initializer_range": hidden_size**-0.5,
    }
    modalities = paper_modalities(*modalities)
    encoders = {spec["encoder"] for spec in modalities.values()}
    configs = {
        "text_config": BertConfig(vocab_size=vocab_size, max_position_embeddings=MAX_TOKENS, **size),
        "vision_config": ViTConfig(image_size=IMAGE_SIZE, patch_size=16, **size),
        # Whisper's features come as [mel_bins, time], the transpose of what AST was made for: its axes trade names.
        "audio_config": ASTConfig(
            max_length=MEL_BINS,
            num_mel_bins=AUDIO_SECONDS * MEL_FRAMES_PER_SECOND,
            patch_size=16,
            time_stride=16,
            frequency_stride=16,
            **size,
        ),
    }
    used = {key: config for key, config in configs.items() if key.removesuffix("_config") in encoders}
    return GramConfig(modalities=modalities, projection_dim=64, **used)


def small_tokenizer(texts: Iterable[str], vocab_size: int = 2000) -> PreTrainedTokenizerBase:
    """
    A lower-casing WordPiece tokenizer that knows the most frequent words of `texts` and spells out all others.

    Not trained: tokenizers' WordPiece trainer numbers its tokens differently in every process, and the processes of a
    distributed run must agree.
    """
    backend = BertTokenizer().backend_tokenizer
    split, normalize = backend.pre_tokenizer.pre_tokenize_str, backend.normalizer.normalize_str
    counts = Counter(word for text in texts for word, _ in split(normalize(text)))
    characters = sorted(set("".join(counts)))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted(counts, key=lambda word: (-counts[word], word))
    tokens = list(dict.fromkeys([*special, *characters, *(f"##{letter}" for letter in characters), *words]))
    vocab = {token: index for index, token in enumerate(tokens[:vocab_size])}
    return BertTokenizer(vocab=vocab, model_max_length=MAX_TOKENS)


def small_processor(texts: Iterable[str], num_frames: int = 2) -> GramProcessor:
    """The processor that goes with [`small_config`]; its vocabulary is counted from `texts`."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return GramProcessor(
        tokenizer=small_tokenizer(texts),
        video_processor=GramVideoProcessor(
            num_frames=num_frames, size={"shortest_edge": IMAGE_SIZE}, crop_size=size, antialias=True
        ),
        feature_extractor=WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=AUDIO_SECONDS),
        audio_seconds=AUDIO_SECONDS,
    )
