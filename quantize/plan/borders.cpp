// Where float and int8 meet, as a minimum cut.
//
// Every unit is int8 or float; each choice has a price, and so has every tensor that one side makes and the other
// reads: it is converted once, however many read it. For two labels this is a minimum s-t cut (Greig, Porteous, Seheult
// 1989), so the best borders are found exactly: no operator is int8 because its neighbour is, and none ping-pongs.
//
//   source side = int8, sink side = float
//   unit           source -> unit: cost in float; unit -> sink: cost in int8
//   int8 -> float  producer -> d (dequantize), d -> each float reader (infinite)
//   float -> int8  each int8 reader -> q (infinite), q -> producer (quantize)
#include <limits>
#include <queue>

#include "plan/units.h"

namespace coppice::quantize {

using namespace torch::jit;

namespace {

constexpr double kNever = 1e15;
constexpr double kQuantizeNs = 0.075, kDequantizeNs = 0.045, kCallNs = 2000;

/// Dinic's algorithm on real capacities.
class Cut {
public:
    int add_node() {
        edges_.emplace_back();
        return static_cast<int>(edges_.size()) - 1;
    }

    void add_edge(int from, int to, double capacity) {
        edges_[static_cast<size_t>(from)].push_back({to, edges_[static_cast<size_t>(to)].size(), capacity});
        edges_[static_cast<size_t>(to)].push_back({from, edges_[static_cast<size_t>(from)].size() - 1, 0});
    }

    /// Nodes on the source's side of a minimum cut.
    std::vector<bool> source_side(int source, int sink) {
        while (find_levels(source)[static_cast<size_t>(sink)] >= 0) {
            next_.assign(edges_.size(), 0);
            while (push(source, sink, kNever * 10) > kTiny) {
            }
        }
        std::vector<bool> side(edges_.size());
        for (size_t i = 0; i < side.size(); ++i) side[i] = level_[i] >= 0;
        return side;
    }

private:
    struct Edge {
        int to;
        size_t back;
        double left;
    };
    static constexpr double kTiny = 1e-6;  // of a nanosecond

    const std::vector<int>& find_levels(int source) {
        level_.assign(edges_.size(), -1);
        level_[static_cast<size_t>(source)] = 0;
        std::queue<int> open;
        open.push(source);
        while (!open.empty()) {
            const int node = open.front();
            open.pop();
            for (const auto& edge : edges_[static_cast<size_t>(node)])
                if (edge.left > kTiny && level_[static_cast<size_t>(edge.to)] < 0) {
                    level_[static_cast<size_t>(edge.to)] = level_[static_cast<size_t>(node)] + 1;
                    open.push(edge.to);
                }
        }
        return level_;
    }

    /// One augmenting path, depth first without recursion: chains of thousands of operators are normal.
    double push(int source, int sink, double most) {
        std::vector<std::pair<int, size_t>> path;  // node, edge taken
        int node = source;
        for (;;) {
            if (node == sink) {
                double flow = most;
                for (const auto& [from, index] : path)
                    flow = std::min(flow, edges_[static_cast<size_t>(from)][index].left);
                for (const auto& [from, index] : path) {
                    auto& edge = edges_[static_cast<size_t>(from)][index];
                    edge.left -= flow;
                    edges_[static_cast<size_t>(edge.to)][edge.back].left += flow;
                }
                return flow;
            }
            auto& next = next_[static_cast<size_t>(node)];
            auto& edges = edges_[static_cast<size_t>(node)];
            while (next < edges.size() && !(edges[next].left > kTiny && level_[static_cast<size_t>(edges[next].to)] ==
                                                                            level_[static_cast<size_t>(node)] + 1))
                ++next;
            if (next < edges.size()) {
                path.emplace_back(node, next);
                node = edges[next].to;
                continue;
            }
            if (path.empty()) return 0;
            node = path.back().first;
            path.pop_back();
            ++next_[static_cast<size_t>(node)];
        }
    }

    std::vector<std::vector<Edge>> edges_;
    std::vector<int> level_;
    std::vector<size_t> next_;
};

double elements(const Facts& facts, const Value* value) {
    double count = 1;
    for (const int64_t size : facts.shape(value)) count *= static_cast<double>(size);
    return count;
}

}  // namespace

void choose_borders(std::vector<Unit>& units, const Facts& facts, bool islands) {
    Cut cut;
    const int source = cut.add_node(), sink = cut.add_node();
    std::unordered_map<const Node*, size_t> unit_of;
    std::unordered_map<const Value*, int> maker;
    std::vector<int> label(units.size());
    for (size_t i = 0; i < units.size(); ++i) {
        label[i] = cut.add_node();
        auto& unit = units[i];
        for (const Node* node : unit.nodes) unit_of[node] = i;
        if (unit.kind == UnitKind::kCat) unit_of[unit.node->input(0)->node()] = i;
        for (const auto* value : unit.outputs) maker[value] = label[i];
        if (!unit.refusal.empty()) {
            cut.add_edge(label[i], sink, kNever);
        } else if (unit.kind == UnitKind::kConv || (unit.kind == UnitKind::kLinear && !islands)) {
            cut.add_edge(source, label[i], kNever);
        } else {
            cut.add_edge(source, label[i], unit.float_cost);
            cut.add_edge(label[i], sink, unit.int8_cost);
        }
    }
    // Every tensor that a unit reads or makes, once.
    std::vector<const Value*> values;
    std::set<const Value*> seen;
    for (const auto& unit : units) {
        for (const auto* value : unit.inputs)
            if (facts.has_shape(value) && seen.insert(value).second) values.push_back(value);
        for (const auto* value : unit.outputs)
            if (facts.has_shape(value) && seen.insert(value).second) values.push_back(value);
    }
    for (const auto* value : values) {
        const auto made = maker.find(value);
        const int producer = made == maker.end() ? sink : made->second;
        const double count = elements(facts, value);
        const int dequantize = cut.add_node(), quantize = cut.add_node();
        if (producer != sink) cut.add_edge(producer, dequantize, kCallNs + kDequantizeNs * count);
        cut.add_edge(quantize, producer, kCallNs + kQuantizeNs * count);
        std::set<size_t> readers;
        bool float_reader = false;
        for (const auto& use : value->uses()) {
            if (reads_no_values(use.user)) continue;
            const auto found = unit_of.find(use.user);
            if (found == unit_of.end() || !units[found->second].refusal.empty())
                float_reader = true;
            else
                readers.insert(found->second);
        }
        if (float_reader) cut.add_edge(dequantize, sink, kNever);
        for (const size_t reader : readers) {
            cut.add_edge(dequantize, label[reader], kNever);
            cut.add_edge(label[reader], quantize, kNever);
        }
    }
    const auto int8 = cut.source_side(source, sink);
    for (size_t i = 0; i < units.size(); ++i) {
        units[i].int8 = int8[static_cast<size_t>(label[i])];
        units[i].island = islands && !units[i].int8 && units[i].kind == UnitKind::kLinear && units[i].refusal.empty();
    }
}

}  // namespace coppice::quantize
