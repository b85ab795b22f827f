"""Permessage-deflate (RFC 7692) that takes memory only when it is used: a browser offers it for every WebSocket."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.typing import ExtensionParameter

__all__ = ["DEFLATE"]

WINDOW_BITS = 12  # 4 KiB: 40 KiB for each WebSocket that compresses, where zlib's default would take 260
SETTINGS = {"memLevel": 5}


class _LazyDeflate(PerMessageDeflate):
    """Its base makes both contexts at once."""

    def __init__(self, of: PerMessageDeflate) -> None:
        super().__init__(True, True, of.remote_max_window_bits, of.local_max_window_bits, of.compress_settings)
        self.remote_no_context_takeover = of.remote_no_context_takeover
        self.local_no_context_takeover = of.local_no_context_takeover

    def __getattr__(self, name: str) -> Any:
        if name == "decoder":
            self.decoder = zlib.decompressobj(wbits=-self.remote_max_window_bits)
        elif name == "encoder":
            self.encoder = zlib.compressobj(wbits=-self.local_max_window_bits, **self.compress_settings)
        else:
            raise AttributeError(name)
        return self.__dict__[name]


class _Factory(ServerPerMessageDeflateFactory):
    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        response, extension = super().process_request_params(params, accepted_extensions)
        return response, _LazyDeflate(extension)


DEFLATE = _Factory(
    server_max_window_bits=WINDOW_BITS, client_max_window_bits=WINDOW_BITS, compress_settings=dict(SETTINGS)
)
