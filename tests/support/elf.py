"""Reads the dynamic section of a shared object: whether it is hardened, and what it needs."""

from __future__ import annotations

import io

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

__all__ = ["ELF", "dynamic"]

ELF = b"\x7fELF"


def dynamic(content: bytes) -> tuple[set[str], set[str], list[str]]:
    """The properties that checksec examines, undefined symbols, and needed libraries."""
    elf = ELFFile(io.BytesIO(content))
    found, needed = set(), []
    if elf["e_type"] == "ET_DYN":
        found.add("position independent")
    for segment in elf.iter_segments():
        if segment["p_type"] == "PT_GNU_RELRO":
            found.add("relro")
        if segment["p_type"] == "PT_GNU_STACK" and not segment["p_flags"] & 1:
            found.add("no executable stack")
    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            for tag in section.iter_tags():
                if tag["d_tag"] == "DT_NEEDED":
                    needed.append(tag.needed)
                if (tag["d_tag"] == "DT_FLAGS" and tag["d_val"] & 8) or (
                    tag["d_tag"] == "DT_FLAGS_1" and tag["d_val"] & 1
                ):
                    found.add("bound at start")
                if tag["d_tag"] in ("DT_RPATH", "DT_RUNPATH"):
                    found.add("own search path")
                if tag["d_tag"] == "DT_TEXTREL":
                    found.add("writes to code")
    symbols = elf.get_section_by_name(".dynsym")
    assert isinstance(symbols, SymbolTableSection)
    wanted = {symbol.name for symbol in symbols.iter_symbols() if symbol["st_shndx"] == "SHN_UNDEF"}
    if ".symtab" in {section.name for section in elf.iter_sections()}:
        found.add("symbols")
    return found, wanted, needed
