# ruff: noqa
# mypy: ignore-errors
"""Own import/export: the user gets a plain gs.Graph, nothing is lost. Uses gs only for its IR classes."""
import numpy as np, onnx, onnx_graphsurgeon as gs
from onnx import AttributeProto as A, TensorProto, helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

class RawAttr:
    """Attribute gs cannot model (SPARSE_TENSOR, TYPE_PROTO(S), TENSORS, GRAPHS, empty list, non-UTF-8 string)."""
    def __init__(self, proto): self.proto = proto
    def __eq__(self, o): return isinstance(o, RawAttr) and self.proto == o.proto
class Lazy(LazyValues):
    def __init__(self, t):
        self.tensor, self.shape = t, list(t.dims); self.dtype = helper.tensor_dtype_to_np_dtype(t.data_type)
        n = 1
        for d in t.dims: n *= d
        self.nbytes = n * np.dtype(self.dtype).itemsize
    def load(self): return numpy_helper.to_array(self.tensor)
def _lazy(t): return Lazy(t)
_PLAIN = {A.FLOAT: 'f', A.INT: 'i', A.TENSOR: 't', A.GRAPH: 'g', A.FLOATS: 'floats', A.INTS: 'ints'}

def _attr_in(a, scope, model):
    if a.ref_attr_name or a.type not in (*_PLAIN, A.STRING, A.STRINGS): 
        return gs.Node.AttributeRef(a.ref_attr_name, gs.util.misc.convert_from_onnx_attr_type(a.type)) if a.ref_attr_name and not a.ByteSize()==0 else RawAttr(a)
    if a.type == A.GRAPH: return _graph_in(a.g, scope, model)
    if a.type == A.TENSOR: return gs.Constant(a.t.name, _lazy(a.t))
    try:
        if a.type == A.STRING: return a.s.decode()
        if a.type == A.STRINGS: v = [s.decode() for s in a.strings]
        else: v = getattr(a, _PLAIN[a.type])
    except UnicodeDecodeError: return RawAttr(a)
    if a.type in (A.FLOATS, A.INTS, A.STRINGS): v = list(v); return v if v else RawAttr(a)
    return v
def _nodes_in(nodes, scope, model):
    local = scope.maps[0]; out = []
    for n in nodes:
        def inp(x):
            if not x: return gs.Variable.empty()
            t = scope.get(x)
            if t is None: t = local[x] = gs.Variable(x)
            return t
        def outp(x):
            if not x: return gs.Variable.empty()
            t = local.get(x)
            if t is None: t = local[x] = gs.Variable(x)
            return t
        ins = [inp(x) for x in n.input]
        g = gs.Node(n.op_type, n.name, {a.name: _attr_in(a, scope, model) for a in n.attribute}, ins, [outp(x) for x in n.output], n.domain if n.HasField('domain') else None)
        g._src = n; out.append(g)
    return out
def _set_type(v, vi):
    v._vi = vi
    if vi.type.WhichOneof('value') == 'tensor_type':
        tt = vi.type.tensor_type; v.dtype = gs.importers.onnx_importer.get_numpy_type(tt.elem_type)
        if v.dtype is None: v.dtype = tt.elem_type
        v.shape = [d.dim_param if d.HasField('dim_param') else d.dim_value if d.HasField('dim_value') else None for d in tt.shape.dim] if tt.HasField('shape') else None
        v._seen = (v.dtype, None if v.shape is None else tuple(v.shape))
    else: v.type = vi.type.WhichOneof('value'); v._seen = (v.dtype, v.shape)
from collections import ChainMap
def _graph_in(p, scope, model):
    local = {}; scope = scope.new_child(local)
    home = []
    for t in p.initializer:
        c = local[t.name] = gs.Constant(t.name, _lazy(t)); c._src = t; home.append(c)
    for t in p.sparse_initializer: c = local[t.values.name] = gs.Constant(t.values.name, SparseValues(t)); home.append(c)
    def var(vi):
        v = local.get(vi.name)
        if v is None: v = local[vi.name] = gs.Variable(vi.name)
        if isinstance(v, gs.Variable): _set_type(v, vi)
        else: v._vi = vi
        return v
    ins = [var(i) for i in p.input]
    for i in p.value_info: var(i)
    nodes = _nodes_in(p.node, scope, model)
    outs = []
    for o in p.output:
        t = local.get(o.name)
        if t is None: t = scope.get(o.name)           # branch returning an outer tensor
        if t is None: t = local[o.name] = gs.Variable(o.name)
        if isinstance(t, gs.Variable) and o.name in local: _set_type(t, o)
        outs.append(t)
    ops = {o.domain: o.version for o in model.opset_import}
    g = gs.Graph(nodes, [i for i in ins if isinstance(i, gs.Variable)], outs, p.name, p.doc_string, ops.get('', ops.get('ai.onnx')), list(model.opset_import))
    g._src, g._home, g._init_inputs, g._outvi = p, home, [i for i in ins if isinstance(i, gs.Constant)], list(p.output)
    g._inorder=[i.name for i in p.input]
    return g
def from_onnx(m):
    g = _graph_in(m.graph, ChainMap(), m); g._model = m; g.ir_version = m.ir_version; g.producer_name, g.producer_version = m.producer_name, m.producer_version
    return g   # functions: kept verbatim in g._model.functions (opaque) in this prototype

def _vi_out(v, orig=None):
    src = orig or getattr(v, '_vi', None); seen = getattr(v, '_seen', None)
    if isinstance(v, gs.Constant):
        if src is not None: return src
        return helper.make_tensor_value_info(v.name, v.values_proto.data_type if hasattr(v,'values_proto') else helper.np_dtype_to_tensor_dtype(np.dtype(v.dtype)), list(v.shape))
    if src is not None and (v.dtype, None if v.shape is None else tuple(v.shape)) == seen:
        if src.name == v.name: return src
        c = onnx.ValueInfoProto(); c.CopyFrom(src); c.name = v.name; return c
    if v.dtype is None: return onnx.ValueInfoProto(name=v.name)
    c = helper.make_tensor_value_info(v.name, v.dtype if isinstance(v.dtype, int) else helper.np_dtype_to_tensor_dtype(np.dtype(v.dtype)), v.shape)
    if src is not None: c.doc_string = src.doc_string; c.metadata_props.extend(src.metadata_props)
    return c
def _tensor_out(c):
    v = c._values
    if isinstance(v, LazyValues):
        if v.tensor.name == c.name: return v.tensor
        t = TensorProto(); t.CopyFrom(v.tensor); t.name = c.name; return t
    t = numpy_helper.from_array(np.asarray(v, order="C"), c.name); s = getattr(c, '_src', None)
    if s is not None: t.doc_string = s.doc_string; t.metadata_props.extend(s.metadata_props)
    return t
def _attr_out(k, v, home_map, old):
    if isinstance(v, RawAttr): a = A(); a.CopyFrom(v.proto); a.name = k; return a
    if isinstance(v, gs.Graph): a = A(name=k, type=A.GRAPH); a.g.CopyFrom(_graph_out(v, home_map))
    elif isinstance(v, gs.Tensor): a = A(name=k, type=A.TENSOR); a.t.CopyFrom(_tensor_out(v))
    elif isinstance(v, gs.Node.AttributeRef): a = A(name=k, type=gs.util.misc.convert_to_onnx_attr_type(v.type), ref_attr_name=v.name)
    elif old is not None and old.type in (A.INTS, A.FLOATS, A.STRINGS) and not len(v): a = A(name=k, type=old.type)
    elif old is not None and old.type == A.FLOAT and isinstance(v, (int, float)): a = A(name=k, type=A.FLOAT, f=v)
    else: a = helper.make_attribute(k, v)
    if old is not None: a.doc_string = old.doc_string
    return a
def _graph_out(g, home_map):
    p = onnx.GraphProto(name=g.name, doc_string=g.doc_string); s = getattr(g, '_src', None)
    for n in g.nodes:
        o = getattr(n, '_src', None); q = p.node.add(op_type=n.op, name=n.name, input=[t.name for t in n.inputs], output=[t.name for t in n.outputs])
        if n.domain: q.domain = n.domain
        if o is not None: q.doc_string = o.doc_string; q.overload = o.overload; q.metadata_props.extend(o.metadata_props); q.device_configurations.extend(o.device_configurations)
        olds = {a.name: a for a in o.attribute} if o is not None else {}
        for k, v in n.attrs.items(): q.attribute.append(_attr_out(k, v, home_map, olds.get(k)))
    tm = g.tensors(); inits = []
    consts = {id(t): t for t in getattr(g, '_home', [])}                        # original order first, incl. unused + captured by subgraphs
    consts.update({id(t): t for t in tm.values() if isinstance(t, gs.Constant)})
    for t in consts.values():
        if not isinstance(t, gs.Constant) or home_map.get(id(t), g) is not g: continue   # owned by an outer graph -> not duplicated
        if isinstance(t._values, SparseValues): p.sparse_initializer.append(t._values.tensor)
        else: p.initializer.append(_tensor_out(t))
    by = {t.name: t for t in list(g.inputs) + getattr(g, '_init_inputs', [])}
    order = [n for n in getattr(g, '_inorder', []) if n in by] ; order += [n for n in by if n not in set(order)]
    p.input.extend(_vi_out(by[n]) for n in order)
    ov = {o.name: o for o in getattr(g, '_outvi', [])}
    p.output.extend(_vi_out(t, ov.get(t.name)) for t in g.outputs)
    io = set(by) | {t.name for t in g.outputs}
    produced = {o.name for n in g.nodes for o in n.outputs}
    svi = {v.name for v in s.value_info} if s is not None else set()
    for t in list(tm.values()) :
        if t.name in io: continue
        if isinstance(t, gs.Variable) and (t.name in produced or t.name in svi) and (t.dtype is not None or getattr(t, '_vi', None) is not None): p.value_info.append(_vi_out(t))
        elif isinstance(t, gs.Constant) and t.name in svi and home_map.get(id(t), g) is g and hasattr(t, '_vi'): p.value_info.append(t._vi)
    if s is not None: p.metadata_props.extend(s.metadata_props); p.quantization_annotation.extend(s.quantization_annotation)
    return p
def to_onnx(g):
    home = {}
    def walk(x):
        for t in getattr(x, '_home', []): home[id(t)] = x
        for n in x.nodes:
            for s in n.subgraphs(): walk(s)
    walk(g); src = getattr(g, '_model', None)
    m = onnx.ModelProto(ir_version=g.ir_version or 8, producer_name=g.producer_name, producer_version=g.producer_version)
    if src is not None:
        for f in ('domain', 'doc_string', 'model_version'):
            if src.HasField(f): setattr(m, f, getattr(src, f))
        for f in ('metadata_props', 'training_info', 'functions', 'configuration'): getattr(m, f).extend(getattr(src, f))
    m.opset_import.extend(g.import_domains); m.graph.CopyFrom(_graph_out(g, home))
    return m
