"""The quick way in from eager code, in C: what torch must tell of tensors and threads before a call may do without its
dispatcher (csrc/runtime/torch_abi_eager.h), and the callables of that way.

Where the running torch or Python does not have what is needed, the quick way stays shut and ops.py's Python does the same
work, a little slower. KGEN_LOG=info says so and why; KGEN_EAGER=0 shuts it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _native
from .errors import KgenError

_lock = threading.Lock()
_shut: str | None = "nobody has asked yet"
_begun = False


def softmax(otherwise: Callable[..., Any], differentiated: Callable[..., Any]) -> Callable[..., Any] | None:
    """A callable for torch.ops.kgen.softmax; None where the quick way is shut. otherwise: has the calls that are not plain;
    differentiated(input, dim): has those whose gradient is recorded."""
    return _native.eager_softmax(otherwise, differentiated) if open_way() else None


def attention(otherwise: Callable[..., Any], differentiated: Callable[..., Any]) -> Callable[..., Any] | None:
    """The same for torch.ops.kgen.attention: query, key and value, and at most is_causal. differentiated(query, key, value,
    None, is_causal, None, False), as its backend is called."""
    return _native.eager_attention(otherwise, differentiated) if open_way() else None


def open_way() -> bool:
    """Opens the quick way, once."""
    global _begun, _shut
    with _lock:
        if not _begun:
            _begun = True
            # In a thread of its own: it has no mode, transform or autocast on, whatever this one has.
            thread = threading.Thread(target=_learn)
            thread.start()
            thread.join()
            if _shut is not None:
                _native.say(f"calls from eager code take the dispatcher's way: {_shut}")
        return _shut is None


def why_shut() -> str | None:
    """Why the quick way is shut; None where it is open."""
    open_way()
    return _shut


def admit(tensor: Tensor) -> bool:
    """Lets tensors like this one, a plain one on a GPU, go the quick way. False where nothing plain looks like it."""
    if _shut is not None or type(tensor) is not Tensor or tensor.layout is not torch.strided:
        return False
    if tensor.is_neg() or tensor.is_conj() or tensor.is_quantized or tensor.device.type not in ("cpu", "cuda"):
        return False
    try:
        _native.eager_admit(id(tensor), torch._C._dispatch_keys(tensor).raw_repr())
    except KgenError as e:
        _native.say(f"calls on {tensor.device.type} take the dispatcher's way: {e}")
        return False
    return True


def _learn() -> None:
    global _shut
    try:
        if os.environ.get("KGEN_EAGER") == "0":
            raise KgenError("KGEN_EAGER is 0")
        _sample(torch.empty(2, 3), plain=True)
        _sample(torch.empty(2, device="meta"), plain=False)
        _sample(torch._neg_view(torch.empty(2)), plain=False)
        _sample(torch.empty(2, 2).to_sparse(), plain=False)
        with torch.inference_mode():
            _sample(torch.empty(2), plain=True)
        with torch.autocast("cpu", torch.bfloat16):
            _sample(torch.empty(2), plain=False)
        _native.eager_open(id(Tensor), id(vars(forward_ad)))
        _shut = None
    except Exception as e:  # noqa: BLE001 - private parts of torch's may change in any way; calls go on without
        _shut = str(e)


def _sample(tensor: Tensor, plain: bool) -> None:
    _native.eager_learn(
        id(tensor),
        Tensor.__basicsize__,
        tensor._cdata,
        torch._C._dispatch_keys(tensor).raw_repr(),
        torch._C._dispatch_tls_local_include_set().raw_repr(),
        torch._C._dispatch_tls_local_exclude_set().raw_repr(),
        plain,
    )
