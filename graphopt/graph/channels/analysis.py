"""The channel analysis: four walks over the program, then which coupled groups can go."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.channels.cutting import Cut, Refusal
from graphopt.graph.channels.facts import Facts, Mask
from graphopt.graph.channels.inference import refine
from graphopt.graph.channels.labels import Label, Labels, components, describe
from graphopt.graph.channels.picking import WORTH, only_reader
from graphopt.graph.channels.storage import Storage
from graphopt.graph.channels.table import transfer_of
from graphopt.graph.view import GraphView, is_op

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Pow", "Concat", "Expand", "Where")
_SHAPED = ("Expand", "Reshape", "Slice", "CastLike", "Tile")


@dataclass
class Channels:
    """The finished analysis of one model.

    ``root`` maps a label to its coupled group, which is named by its smallest label. ``family`` maps a label to its
    family: the groups of layers that are fed index by index alike, which have a site in common. ``dear`` says of what
    ``worth`` was last asked about why it stays ("" where nothing could be gained).
    """

    facts: Facts
    labels: Labels
    root: Label
    family: Label
    live: Mask
    present: Mask
    blocked: dict[int, str]
    dear: dict[int, str] = field(default_factory=dict)

    @classmethod
    def analyze(cls, view: GraphView) -> "Channels":
        """Walk the program forwards, backwards and forwards again."""
        facts = Facts(view)
        for node in facts.program:
            refine(node, facts)
            transfer_of(node).forward(node, facts)
        for graph in view.graphs():
            for out in graph.outputs:
                facts.need(out)
        for node in reversed(facts.program):
            transfer_of(node).backward(node, facts)
        labels = Labels(facts)
        for node in facts.program:
            if not node.outputs or not all(facts.is_constant(out) for out in node.outputs):
                transfer_of(node).couple(node, facts, labels)
        for graph in view.graphs():
            for out in graph.outputs:
                for axis in labels.variables.get(id(out), ()):
                    labels.block(
                        axis, f"{out.name!r} is an output of {'the model' if graph is view.model.graph else 'a body'}"
                    )
        labels.blocks[:0] = _left_out(view, labels)
        return cls._solved(facts, labels)

    @classmethod
    def _solved(cls, facts: Facts, labels: Labels) -> "Channels":
        """Join the labels that were unified, and gather what is known of each group."""
        left = np.concatenate([edge[0] for edge in labels.edges]) if labels.edges else np.zeros(0, dtype=np.int64)
        right = np.concatenate([edge[1] for edge in labels.edges]) if labels.edges else np.zeros(0, dtype=np.int64)
        root = components(labels.count, left, right)
        owner = np.searchsorted(np.array(labels.starts), np.arange(labels.count), side="right") - 1
        layer = np.array([labels.is_layer(start) for start in labels.starts], dtype=bool)
        inside = layer[owner[left]] & layer[owner[right]] if len(left) else np.zeros(0, dtype=bool)
        streams = components(len(labels.starts), owner[left][inside], owner[right][inside])
        lead = np.arange(labels.count)
        if labels.count:
            lead = np.full(labels.count, labels.count)
            np.minimum.at(lead, root[layer[owner]], np.flatnonzero(layer[owner]))
            lead = np.where(lead == labels.count, np.arange(labels.count), lead)
        live, present = np.zeros(labels.count, dtype=bool), np.zeros(labels.count, dtype=bool)
        for key, axes in labels.variables.items():
            for axis, label in enumerate(axes):
                if label is not None:
                    present[root[label]] = True
                    live[root[label[facts.needed(labels.tensors[key], axis)]]] = True
        blocked: dict[int, str] = {}
        for label, reason in labels.blocks:
            for group in np.unique(root[label]).tolist():
                blocked.setdefault(group, reason)
        return cls(facts, labels, root, streams[owner[lead[root]]] if labels.count else owner, live, present, blocked)

    # -- sites ---------------------------------------------------------------------------------------------------------

    @cached_property
    def sites(self) -> dict[int, str]:
        """The site of each family: the first layer that feeds it."""
        found: dict[int, str] = {}
        ranked: dict[int, int] = {}
        bounds = pairwise([*self.labels.starts, self.labels.count])
        for (start, end), node in zip(bounds, self.labels.owners, strict=True):
            use, axis = self.labels.born.get(start, (None, 0))
            rank = 0 if self.labels.is_layer(start) else 1 if use is not None and use.roles[axis] == "feeds" else 2
            for family in np.unique(self.family[start:end]).tolist():
                if rank < ranked.get(family, 3):
                    found[family] = self.facts.view.site(node if use is None else use.readers[axis])
                    ranked[family] = rank
        return found

    # -- what goes -----------------------------------------------------------------------------------------------------

    def removable(self, vetoes: Mapping[str, str] = {}) -> Mask:
        """Return, for each label, whether its group can go: present, needed nowhere, not blocked, not vetoed.

        Of an axis that would lose everything, the first index stays.
        """
        gone = self.present & ~self.live
        gone[list(self.blocked)] = False
        if vetoes:
            barred = np.array([family for family, site in self.sites.items() if site in vetoes], dtype=np.int64)
            gone &= ~np.isin(self.family, barred)
        gone = gone[self.root]
        every = [label for axes in self.labels.variables.values() for label in axes]
        every += [label for use in self.labels.uses.values() for label in use.axes.values()]
        for label in every:
            if label is not None and len(label) and gone[label].all():
                gone[self.root == self.root[label[0]]] = False
        return self.worth(gone)

    def worth(self, gone: Mask) -> Mask:
        """Return what is to go without what costs more than it saves: picks, and copies of weights that are shared."""
        self.dear = {}
        for pick in self.labels.picks:
            groups = np.unique(self.root[pick.label[gone[pick.label]]]).tolist()
            stored = [group for group in groups if self.storage.is_stored(group)]
            self.dear |= dict.fromkeys(set(groups) - set(stored), "")
            kept = int((~gone & self.live[self.root])[pick.label].sum())
            if stored and self.storage.saved(stored, gone) < WORTH * kept:
                why = f"picking the others behind {describe(pick.node)} would cost more than it saves"
                self.dear |= dict.fromkeys(stored, why)
        gone = gone & ~np.isin(self.root, list(self.dear)) if self.dear else gone
        for groups in self.storage.shared(gone):
            if (saved := self.storage.saved(groups, gone)) < 0:
                why = f"layers share its weights, and copies without it would add {-saved} elements"
                self.dear |= dict.fromkeys(groups, why)
        return gone & ~np.isin(self.root, list(self.dear)) if self.dear else gone

    @cached_property
    def storage(self) -> Storage:
        """What the model stores, as a function of what goes."""
        return Storage(self.facts, self.labels, self.root)

    def cut(self, gone: Mask) -> Cut:
        """Plan the removal of labels.

        Raises:
            Refusal: A node cannot follow; ``leave`` then takes what it touches out.
        """
        cut = Cut(self.facts, self.labels, gone)
        if gone.any():
            for node in self.facts.program:
                transfer_of(node).cut(node, cut)
        return cut

    def leave(self, refusal: Refusal, gone: Mask) -> None:
        """Block every group that the refusing node touches, so that the next plan leaves them alone.

        If none of them was to go, everything stays.
        """
        node = refusal.node
        labels = [
            axis for tensor in [*node.inputs, *node.outputs] for axis in self.labels.variables.get(id(tensor), ())
        ]
        for slot in range(len(node.inputs)):
            if (use := self.labels.uses.get((id(node), slot))) is not None:
                labels += use.axes.values()
        touched = {int(group) for label in labels if label is not None for group in np.unique(self.root[label])}
        if not any(gone[group] for group in touched):
            touched = {int(group) for group in np.unique(self.root[gone])}
        for group in touched:
            self.blocked.setdefault(group, str(refusal))

    # -- why not -------------------------------------------------------------------------------------------------------

    def survivors(self, gone: Mask, vetoes: Mapping[str, str] = {}) -> list[tuple[str, str]]:
        """Return (site, reason) for every family in which nought, constant or unread channels stay."""
        idle = np.zeros(len(self.root), dtype=bool)
        witness = np.full(len(self.root), -1)
        reader = np.full(len(self.root), -1)
        fillers = self._fillers()
        view = self.facts.view
        picked = {id(place.node.inputs[place.slot]) for place in self.labels.picks if place.slot is not None}
        gathered = [node.inputs[0] for node in self.facts.program if is_op(node, "Gather", "Slice")]
        gathered += [node.inputs[0] for t in gathered if (node := view.producer(t, "Transpose")) is not None]
        picked |= {id(tensor) for tensor in gathered if only_reader(tensor, self.facts) is not None}
        tensors = [
            tensor
            for key, tensor in self.labels.tensors.items()
            if key not in fillers
            and key not in picked
            and (view.is_output(tensor) or any(node.op != "Shape" for node in view.readers(tensor)))
        ]
        for index, tensor in enumerate(tensors):
            for axis, label in enumerate(self.labels.variables[id(tensor)]):
                if label is None:
                    continue
                known = self.facts.uniform(tensor, axis)
                constant = np.zeros(len(label), dtype=bool) if known is None else ~np.isnan(known)
                needed = self.facts.needed(tensor, axis)
                roots = self.root[label]
                idle[roots[constant | ~needed]] = True
                fresh = roots[needed & ~constant]
                witness[fresh[witness[fresh] < 0]] = index
                reader[roots[needed & constant]] = index
        idle &= self.present & ~gone & self._layered & (np.arange(len(self.root)) == self.root)
        idle[[group for group, reason in self.dear.items() if not reason]] = False
        counts: dict[tuple[str, str], int] = {}
        for group in [int(index) for index in np.flatnonzero(idle)]:
            site = self.sites[int(self.family[group])]
            reason = (
                vetoes.get(site)
                or self.blocked.get(group)
                or self.dear.get(group)
                or self._why(site, tensors, int(witness[group]), int(reader[group]))
            )
            counts[site, reason] = counts.get((site, reason), 0) + 1
        return [
            (site, f"{count} idle channel{'s stay' if count > 1 else ' stays'}: {reason}")
            for (site, reason), count in [*counts.items(), *self._handed_in()]
        ]

    @cached_property
    def _layered(self) -> Mask:
        """Which groups some layer makes, scales or reads, and not element-wise operators alone, as of anchors."""
        found = np.zeros(len(self.root), dtype=bool)
        for use in self.labels.uses.values():
            for axis, label in use.axes.items():
                if use.roles[axis] != "aside" and not is_op(use.readers[axis], *_ELEMENTWISE):
                    found[self.root[label]] = True
        return found

    def _handed_in(self) -> Iterator[tuple[tuple[str, str], int]]:
        """Yield layers in bodies whose weights come in from outside, with what is nought in those."""
        view = self.facts.view
        for node in self.facts.program:
            if not is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul") or self.facts.is_constant(node.inputs[1]):
                continue
            for outside in view.borders.outside(node.inputs[1])[:1]:
                weight = self.facts.array(outside)
                if weight is None or weight.ndim < 2:
                    continue
                rows = (np.moveaxis(weight != 0, axis, 0).reshape(weight.shape[axis], -1) for axis in range(2))
                if count := sum(int((~row.any(axis=1)).sum()) for row in rows):
                    which = f"the weight {node.inputs[1].name!r} of {describe(node)}"
                    yield (view.site(node), f"{which} is handed in from outside of its body"), count

    def _fillers(self) -> set[int]:
        """Return the tensors that no input of the model has a say in, such as starting states."""
        found: set[int] = set()
        for node in self.facts.program:
            if node.op == "ConstantOfShape" or (
                node.inputs
                and all(id(t) in found or self.facts.is_computed(t) for t in node.inputs[:1])
                and all(
                    id(t) in found or self.facts.is_computed(t) or node.op in _SHAPED for t in node.inputs[1:] if t.name
                )
            ):
                found |= {id(out) for out in node.outputs}
        return found

    def _why(self, site: str, tensors: list[gs.Tensor], witness: int, reader: int) -> str:
        """Say why a group that is nowhere blocked is still needed."""
        if witness >= 0 and tensors[witness].name == site:
            return f"coupled with another channel of {site!r}, which is needed and not constant"
        if witness >= 0:
            return f"coupled with {tensors[witness].name!r}, which is needed and not constant there"
        if reader >= 0:
            last = next(iter(self.facts.view.readers(tensors[reader])), None)
            by = describe(last) if last is not None else "the caller"
            return f"{tensors[reader].name!r} holds a constant there that {by} cannot absorb"
        return "the last channel of a layer"


def _left_out(view: GraphView, labels: Labels) -> list[tuple[Label, str]]:
    """Return the channels that layers make or scale which the user leaves out, with the reason."""
    if view.left_out is None or not view.left_out.reasons:
        return []
    made = (
        (own, view.why_left_out(use.readers[axis]))
        for use in labels.uses.values()
        for axis, own in use.axes.items()
        if own.size and use.roles[axis] in ("feeds", "scales")
    )
    return [(own, reason) for own, reason in made if reason]
