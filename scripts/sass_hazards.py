#!/usr/bin/env python3
"""Finds registers that are written while an asynchronous wgmma still reads or writes them.

    scripts/sass_hazards.py CUBIN...        exit status 1 if any kernel has a hazard

A wgmma returns before it has read its operand registers: until the wait for its group (WARPGROUP.DEPBAR in SASS), neither the
fragment of A nor the accumulators may be written, nor may accumulators be read. The hardware does not check it, and ptxas
13.0 does not always keep to it: where a branch lies between the product and its wait, it has given the registers of a
fragment, dead in its eyes once the last product was issued, to the next loads. The result is wrong now and then, and only in
large runs. So every change of a kernel with wgmma is followed by this scan.

It walks each kernel's instructions in the order of addresses and takes no branch, so a hazard that only a jump creates is
missed, and two branches of an `if` that share registers could be taken for one. cuobjdump must be on PATH, or named in
the environment variable CUOBJDUMP.
"""

import os
import re
import subprocess
import sys

PRODUCT = re.compile(r"[QHI]GMMA\.\d+x(\d+)x\d+\.(F32|F16|S32)")
# Their first register is read, or they write none.
NO_DESTINATION = ("ST", "RED", "BAR", "BRA", "BSSY", "BSYNC", "CALL", "EXIT", "RET", "R2UR", "SYNCS", "UTMA", "WARPSYNC")


def instructions(text):
    """Address, operation and operands, predicates removed."""
    for address, instruction in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", text):
        operation, _, operands = re.sub(r"^@!?U?P[T\d]\s+", "", instruction.strip()).partition(" ")
        yield address, operation, operands.strip()


def written(operation, operands):
    """The range of registers that an instruction writes, or None."""
    first = re.match(r"(?:P[T\d], )*R(\d+)", operands)
    if first is None or operation.startswith(NO_DESTINATION):
        return None
    width = 4 if ".128" in operation else 2 if ".64" in operation or ".WIDE" in operation or operation == "CS2R" else 1
    return range(int(first[1]), int(first[1]) + width)


def read(operands):
    """Registers that an instruction names; those of wide operands beyond the first are left out."""
    return {int(number) for number in re.findall(r"\bR(\d+)", operands)}


def hazards(text):
    """Number of products, and a line for each conflict."""
    found, products = [], 0
    groups, current = [], []  # of (address, accumulators, fragment)
    for address, operation, operands in instructions(text):
        product = PRODUCT.match(operation)
        if product:
            products += 1
            registers = [int(number) for number in re.findall(r"\bR(\d+)", operands)]
            count = int(product[1]) // (4 if product[2] == "F16" else 2)
            fragment = range(0) if operands.split(",")[1].strip().startswith("gdesc") else range(registers[1], registers[1] + 4)
            current.append((address, range(registers[0], registers[0] + count), fragment))
            if "gsb0" in operands:
                groups.append(current)
                current = []
            continue
        if operation.startswith("WARPGROUP.DEPBAR"):
            pending = int(operands.split(",")[1], 0)
            groups = groups[len(groups) - pending:] if pending else []
            continue
        if not (groups or current):
            continue
        target = written(operation, operands) or range(0)
        sources = read(operands) - ({target.start} if operands.count(f"R{target.start}") == 1 else set())
        for at, accumulators, fragment in [product for group in groups + [current] for product in group]:
            if set(target) & (set(accumulators) | set(fragment)):
                found.append(f"{address}: {operation} {operands} writes what the product at {at} uses")
            elif sources & set(accumulators):
                found.append(f"{address}: {operation} {operands} reads what the product at {at} writes")
    return products, found


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    total = 0
    for cubin in sys.argv[1:]:
        command = [os.environ.get("CUOBJDUMP", "cuobjdump"), "-sass", cubin]
        sass = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for kernel in sass.split("Function : ")[1:]:
            products, found = hazards(kernel)
            print(f"{kernel.split(chr(10))[0].strip()}: {products} products, {len(found)} hazards")
            for line in found[:8]:
                print(f"    {line}")
            total += len(found)
    sys.exit(1 if total else 0)


if __name__ == "__main__":
    main()
