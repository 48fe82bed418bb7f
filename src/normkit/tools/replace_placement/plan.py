"""Decides which norms of a stack of residual blocks are moved, made and removed, and carries it out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from types import CodeType
from typing import Any

from torch import nn

from normkit.tools.model.info import NormInfo
from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.tree import module_places, replace
from normkit.tools.replace_placement.norm_units import ADDED, EmptyPlace, like_this, reset
from normkit.tools.replace_placement.record import Event, Record, Site
from normkit.tools.replace_placement.report import BlockChange, StackChange
from normkit.tools.replace_placement.residuals import Found, Placement, Residual, Stack, end_of_branch, place_in
from normkit.tools.replace_placement.roles import Roles, roles
from normkit.tools.replace_placement.source import MethodEdits, rewrite
from normkit.tools.replace_placement.undo import Undo

STEM, FINAL = "stem_norm", "final_norm"
"""Names of the new norms at the ends of a stack."""


class Plan:
    """The changes of all stacks of a model that go to one placement; nothing happens before `carry_out`."""

    def __init__(self, model: nn.Module, known: Mapping[nn.Module, NormInfo], record: Record, to: Placement) -> None:
        self.model, self.known, self.record, self.to = model, known, record, to
        self.names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
        self.edits: dict[tuple[nn.Module, CodeType], MethodEdits] = {}
        self.done: set[tuple[Any, ...]] = set()
        self.made: dict[tuple[Any, ...], str] = {}
        self.added: list[tuple[nn.Module, str, nn.Module]] = []
        self.replaced: list[tuple[nn.Module, nn.Module]] = []
        self.dropped: list[nn.Module] = []
        self.placed: list[nn.Module] = []
        """The norms whose parameters get their initial values."""
        self.blocks: dict[tuple[int, int], BlockChange] = {}
        """By the numbers of the stack and of the block in it."""
        self.stacks: list[tuple[int, StackChange]] = []
        self.at: Residual | None = None
        """The block that is being decided."""

    def decide(self, index: int, found: Sequence[Stack], original: Stack) -> None:
        """Plan the changes of one stack.

        Args:
            index: its number.
            found: all stacks.
            original: the stack before the flags of torch's own layers were set.

        Raises:
            RefusedError: with the reason; the plan is then not to be used.
        """
        stack, every = found[index], [residual for other in found for residual in other.residuals]
        for number, (residual, old) in enumerate(zip(stack.residuals, original.residuals, strict=True)):
            self.at = residual
            self._check_shared(residual, every)
            self.blocks[index, number] = self._apply(
                roles(residual, self.to, self._added_before), original.placement(old), old.share
            )
        self.at = None
        self.stacks += [(index, row) for row in (self._final(stack, original), self._stem(stack)) if row is not None]

    def _check_shared(self, residual: Residual, every: Collection[Residual]) -> None:
        """Refuse an expression that adds up several blocks, each with norms of its own."""
        if not residual.sum.sites:
            raise RefusedError("its sum is not computed by a method of a module")
        here = residual.sum.sites[-1].expression
        same = [other for other in every if other.sum.sites and other.sum.sites[-1].expression == here]
        if any([norm.module for norm in other.norms] != [norm.module for norm in residual.norms] for other in same):
            raise RefusedError(
                "one line of code adds up several blocks in a loop, and their norms differ: give each block a module "
                "with a forward of its own"
            )

    def _method(self, site: Site) -> MethodEdits:
        key = site.module, site.code
        if key not in self.edits:
            self.edits[key] = MethodEdits(site)
        return self.edits[key]

    def _once(self, *key: Any) -> bool:
        """Whether this change is planned for the first time; a module may be called several times."""
        new = key not in self.done
        self.done.add(key)
        return new

    def _apply(self, change: Roles, before: Found, share: float) -> BlockChange:
        residual = change.residual
        for norm in [*change.moved.values(), *change.dropped]:
            self._remove_call(norm)
        dropped = [norm.norm for norm in change.dropped]
        self.dropped += [module for module in dropped if module not in self.dropped]
        for role, norm in change.moved.items():
            self._wrap(residual, role, change.primary, norm.norm)
            self.placed.append(norm.norm)
        made = [self._wrap(residual, role, change.primary) for role in change.made]
        return BlockChange(
            self._name(change.primary),
            type(residual.sum.sites[-1].module).__name__,
            before,
            self.to,
            tuple(made),
            tuple(self._name(norm) for norm in change.dropped),
            share,
        )

    def _remove_call(self, norm: Event) -> None:
        if not norm.sites:
            raise RefusedError(f"its {type(norm.norm).__name__} is not called by a method of a module")
        site = norm.sites[-1]
        method = self._method(site)
        if self._once("remove", site.expression):
            method.remove_call(site.place, norm.norm)

    def _wrap(self, residual: Residual, role: str, like: Event, norm: nn.Module | None = None) -> str:
        """Plan the call of a norm, of a new one like another if none is given; returns its name in the model."""
        site = self._input_site(residual) if role == "input" else residual.sum.sites[-1]
        method = self._method(site)
        if norm is None:
            leaf = self.names[like.norm].rpartition(".")[2]
            local = self._add(site.module, f"{leaf}_{role}", like.norm, role, site)
        else:
            local = self._local(site.module, norm)
        if role == "input":
            self._wrap_input(residual, site, method, local)
        elif role == "sum":
            method.check_sum(site.place)
            if self._once("sum", site.expression):
                method.wrap(method.node(site.place), local)
        else:
            self._wrap_output(residual, site, method, local)
        return self._full(site.module, local)

    def _full(self, holder: nn.Module, local: str) -> str:
        return f"{self.names[holder]}.{local}" if self.names[holder] else local

    def _local(self, holder: nn.Module, norm: nn.Module) -> str:
        """The name of a norm inside the module that is to call it."""
        names: list[str] = [name for name, module in holder.named_modules() if module is norm]
        if names:
            return names[0]
        raise RefusedError(
            f"its {type(norm).__name__} is not part of {type(holder).__name__}, which would have to call it"
        )

    def _add(self, holder: nn.Module, name: str, like: nn.Module, role: str, site: Site) -> str:
        """Plan a new norm in a module, once for each expression that will call it; returns its name there."""
        key = role, site.expression
        if key not in self.made:
            taken = {known for other, known, _ in self.added if other is holder}
            while hasattr(holder, name) or name in taken:
                name += "_"
            self._new(like, holder, name)
            self.made[key] = name
        return self.made[key]

    def _new(self, like: nn.Module, holder: nn.Module, name: str) -> None:
        new = like_this(like, self.known[like])
        self.added.append((holder, name, new))
        self.placed.append(new)

    def _input_site(self, residual: Residual) -> Site:
        """The innermost method that is running both when the sum is computed and when the branch reads its input."""
        chains = [event.sites for event in (residual.sum, *residual.entries)]
        common = [
            site for site in residual.sum.sites if all(any(o.frame == site.frame for o in chain) for chain in chains)
        ]
        if not common:
            raise RefusedError("no method of a module reads the input of the branch and computes the sum")
        return common[-1]

    def _wrap_input(self, residual: Residual, site: Site, method: MethodEdits, local: str) -> None:
        reads = []
        for event in residual.entries:
            here = place_in(event, site.frame)
            assert here is not None
            if here.place == site.place:
                raise RefusedError("the same call reads the input of the branch and computes the sum")
            names = {name for name, value in here.names.items() if value == residual.skip}
            found = method.reads(here.place, names)
            if not found:
                raise RefusedError(
                    f"{type(site.module).__name__}.{site.method} does not pass the input of the branch as a variable"
                )
            reads += [read for read in found if read not in reads]
        if self._once("input", site.expression):
            method.wrap_reads(reads, local)

    def _wrap_output(self, residual: Residual, site: Site, method: MethodEdits, local: str) -> None:
        end = end_of_branch(self.record, residual)
        if end is residual.sum:
            method.check_sum(site.place)
            target = method.operand(site.place, residual.operand)
        else:
            here = place_in(end, site.frame)
            assert here is not None
            if isinstance(end, Event) and end.sites[-1] is here:
                index = next(i for i, value in enumerate(end.inputs) if value is not None)
                names = {name for name, value in here.names.items() if value == end.values[0]}
                target = method.scaled(here.place, index, len(end.inputs), names)
            else:
                target = method.argument(here.place)
        if self._once("output", site.expression):
            method.wrap(target, local)

    def _final(self, stack: Stack, original: Stack) -> StackChange | None:
        """The norm at the end of the stack: post-norm has none, all others have one."""
        last = stack.last
        if self.to == "post":
            changes = stack.final is not None and original.last.after_sum is None
            return self._remove_final(stack.final) if changes and stack.final is not None else None
        if stack.final is not None:
            return StackChange(self._name(stack.final), "final", "kept")
        like = last.norms[0].norm
        place = self._old_place(stack)
        holder = self._torch_stack(last)
        if place is not None:
            new = like_this(like, self.known[like])
            self.replaced.append((place, new))
            self.placed.append(new)
            name = self.names[place]
        elif holder is not None:
            self._new(like, holder, "norm")
            name = self._full(holder, "norm")
        else:
            site = last.sum.sites[-1]
            method = self._method(site)
            method.check_sum(site.place)
            uses = [e for e in self.record.events if e.sites and e.sites[-1].expression == site.expression]
            if len(uses) > 1:
                raise RefusedError("the last block is called several times, so that no norm can be added at its end")
            local = self._add(site.module, FINAL, like, FINAL, site)
            method.wrap(method.node(site.place), local)
            name = self._full(site.module, local)
        return StackChange(name, "final", "added")

    def _name(self, norm: Event) -> str:
        return self.names[norm.norm]

    def _old_place(self, stack: Stack) -> nn.Module | None:
        """The module that an earlier change has left in place of the norm at the end."""
        end = stack.last.after_sum.outputs[0] if stack.last.after_sum is not None else stack.last.sum.outputs[0]
        for each in self.record.passes:
            if each.value == end and isinstance(each.module, EmptyPlace):
                return each.module
        return None

    def _torch_stack(self, last: Residual) -> nn.Module | None:
        """The encoder or decoder of torch that has a place for the norm at the end."""
        for site in reversed(last.sum.sites):
            if isinstance(site.module, nn.TransformerEncoder | nn.TransformerDecoder) and site.module.norm is None:
                return site.module
        return None

    def _remove_final(self, norm: Event) -> StackChange:
        name = self._name(norm)
        if self._added_before(norm):
            self._remove_call(norm)
            self.dropped.append(norm.norm)
        elif sum(event.module is norm.module for event in self.record.events) > 1:
            raise RefusedError("the norm at the end is called elsewhere too, so that it cannot be removed")
        else:
            self.replaced.append((norm.norm, EmptyPlace()))
        return StackChange(name, "final", "removed")

    def _added_before(self, norm: Event) -> bool:
        """Whether an earlier change has added this norm to the module that calls it."""
        added = vars(norm.sites[-1].module).get(ADDED, ()) if norm.sites else ()
        return self._name(norm).rpartition(".")[2] in added

    def _stem(self, stack: Stack) -> StackChange | None:
        """The norm of the input of the stack, which peri-LN has."""
        head, stem = stack.residuals[0], stack.stem
        if stem is not None and self.to != "peri":
            if not self._added_before(stem):
                return None
            self._method(stem.sites[-1]).remove_first(stem.norm)
            self.dropped.append(stem.norm)
            return StackChange(self._name(stem), "stem", "removed")
        if self.to != "peri":
            return None
        if stem is not None:
            return StackChange(self._name(stem), "stem", "kept")
        site = self._input_site(head)
        here = place_in(head.entries[0], site.frame)
        assert here is not None
        arguments = site.code.co_varnames[1 : site.code.co_argcount + site.code.co_kwonlyargcount]
        names = [name for name, value in here.names.items() if value == head.skip and name in arguments]
        if not names:
            raise RefusedError("the input of the stack is not an argument of its first block, to be normalized there")
        if sum(other.sum.sites[-1].expression == head.sum.sites[-1].expression for other in stack.residuals) > 1:
            raise RefusedError("the first block is called several times, so that its input cannot be normalized")
        like = head.norms[0].norm
        local = self._add(site.module, STEM, like, STEM, site)
        self._method(site).normalize_first(names[0], local)
        return StackChange(self._full(site.module, local), "stem", "added")

    def changes(self, index: int) -> bool:
        """Whether anything of a stack changes."""
        rows = [row for (stack, _), row in self.blocks.items() if stack == index]
        ends = [row.change for stack, row in self.stacks if stack == index]
        return any(row.before != row.after for row in rows) or any(change != "kept" for change in ends)

    def carry_out(self, undo: Undo) -> None:
        """Change the model."""
        for holder, name, new in self.added:
            if vars(holder).get(name, new) is None:
                del vars(holder)[name]  # torch's stacks keep None where there is no norm
            holder.add_module(name, new)
            vars(holder)[ADDED] = (*vars(holder).get(ADDED, ()), name)
        methods: dict[nn.Module, dict[str, str]] = defaultdict(dict)
        for (module, _), edits in self.edits.items():
            methods[module][edits.name] = edits.text()
        for module, texts in methods.items():
            rewrite(module, tuple(texts.items()))
            if isinstance(module, nn.TransformerEncoderLayer):
                # In evaluation it may call one operator for the whole layer, which knows nothing of further norms.
                module.activation_relu_or_gelu = 0
        replace(self.model, dict(self.replaced))
        places = {place.module: place for place in module_places(self.model)}
        for old in self.dropped:
            for parent, key in places[old].parents:
                del parent._modules[key]
        for norm in self.placed:
            undo.keep([*norm.parameters(), *norm.buffers()])
            reset(norm, self.known.get(norm))
