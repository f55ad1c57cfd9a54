#include "criteria/readers.h"

#include <set>

namespace coppice::prune {
namespace {

std::optional<size_t> position_of(const Node* node, const Value* value) {
    for (size_t i = 0; i < node->inputs().size(); ++i)
        if (node->inputs()[i] == value) return i;
    return std::nullopt;
}

/// x with zeros around it, as the convolution pads. [N, C, spatial ...]
at::Tensor padded(const at::Tensor& x, const ConvView& conv, at::IntArrayRef kernel) {
    std::vector<int64_t> amounts;  // last dimension first, before and behind
    for (int64_t d = conv.dims - 1; d >= 0; --d) {
        int64_t before = 0, behind = 0;
        if (conv.padding_mode == "same") {
            const int64_t total = conv.dilation[d] * (kernel[d] - 1);
            before = total / 2;
            behind = total - before;
        } else if (conv.padding_mode.empty()) {
            before = behind = conv.padding[d];
        }
        amounts.insert(amounts.end(), {before, behind});
    }
    return at::constant_pad_nd(x, amounts);
}

/// One tap per group with channels along `dim` of `value`.
std::vector<Tap> taps_of(const Groups& groups, const Value* value, int64_t dim) {
    std::map<int64_t, std::vector<std::vector<int64_t>>> indices;  // by group and channel
    const auto places = groups.places(value, dim);
    for (size_t i = 0; i < places.size(); ++i) {
        if (places[i].group < 0) continue;
        auto& channels = indices[places[i].group];
        channels.resize(static_cast<size_t>(groups.all()[places[i].group].channels));
        channels[places[i].channel].push_back(static_cast<int64_t>(i));
    }
    std::vector<Tap> taps;
    for (const auto& [group, channels] : indices) {
        std::vector<at::Tensor> rows;
        bool even = true;
        for (const auto& row : channels) {
            even &= !row.empty() && row.size() == channels[0].size();
            rows.push_back(at::tensor(row, at::kLong));
        }
        if (!even) continue;  // not all channels pass here, or not equally
        Tap tap;
        tap.group = static_cast<size_t>(group);
        tap.value = value;
        tap.dim = dim;
        tap.indices = at::stack(rows);
        taps.push_back(std::move(tap));
    }
    return taps;
}

int64_t rank_of(const Groups& groups, const Value* value) {
    if (!groups.relations()) return 0;
    const TensorId id = groups.relations()->find_tensor(value);
    return id == kNoTensor ? 0 : groups.relations()->rank(id);
}

void run(const Model& model, const Observation& how, Context& context, const NodeHooks& hooks) {
    if (!context.data.calibration || context.data.calibration->size() == 0)
        throw InvalidArgument(how.where, "there is no calibration data",
                              "Give `calibration` in `data:`, or use criterion magnitude.");
    torch::NoGradGuard no_grad;
    const EvalMode eval(model);
    BatchIterator iterator(*context.data.calibration, how.batch_size, /*shuffle=*/true, context.seed);
    for (int64_t count = 0; count < how.batches;) {
        const auto batch = iterator.next();
        if (!batch) break;
        if (context.interrupted()) throw Interrupted(how.where, "stopped", "");
        run_nodes(model, batch->inputs, hooks);
        context.log->progress(std::string(how.where) + " scores", static_cast<double>(++count),
                              static_cast<double>(how.batches), "");
    }
}

at::Tensor checked(const Observation& how, const Value* value, const c10::IValue& seen) {
    auto x = seen.toTensor();
    if (!x.isfinite().all().item<bool>())
        throw UnsupportedModel(how.where, "%" + value->debugName() + " holds NaN or infinity on the calibration data",
                               "Check data and checkpoint.");
    return x;
}

}  // namespace

EvalMode::EvalMode(const Model& model) {
    for (auto module : model.module().modules())
        if (module.hasattr("training") && module.is_training()) training_.push_back(module);
    for (auto& module : training_) module.setattr("training", false);
}

EvalMode::~EvalMode() {
    for (auto& module : training_) module.setattr("training", true);
}

at::Tensor Reader::matrix(const at::Tensor& weight_tensor) const {
    const auto w = weight_tensor.detach().movedim({weight_out, weight_in}, {0, 1});
    return w.reshape({w.size(0), w.size(1), -1});
}

at::Tensor Reader::rows(const at::Tensor& x, int64_t positions, uint64_t seed) const {
    if (!conv) {
        const auto tokens = x.dim() < 2 ? x.reshape({1, 1, -1}) : x.reshape({x.size(0), -1, x.size(-1)});  // [N, T, C]
        if (tokens.size(1) <= positions) return tokens.flatten(0, 1);
        auto generator = at::detail::createCPUGenerator(seed);
        const auto place = at::randint(tokens.size(1), {tokens.size(0), positions}, generator, at::kLong) +
                           at::arange(tokens.size(0)).unsqueeze(1) * tokens.size(1);
        return tokens.flatten(0, 1).index_select(0, place.flatten());
    }
    const int64_t dims = conv->dims;
    auto windows = padded(x.dim() == dims + 1 ? x.unsqueeze(0) : x, *conv, kernel);  // [N, C, spatial ...]
    for (int64_t d = 0; d < dims; ++d)
        windows = windows.unfold(2 + d, (kernel[d] - 1) * conv->dilation[d] + 1, conv->stride[d]);
    for (int64_t d = 0; d < dims; ++d)
        windows = windows.slice(2 + dims + d, 0, windows.size(2 + dims + d), conv->dilation[d]);
    // [N, C, out ..., kernel ...] -> [N, out ..., C, kernel ...]
    windows = windows.movedim(1, 1 + dims);
    const auto sizes = windows.sizes();
    const int64_t examples = sizes[0], all = c10::multiply_integers(sizes.slice(1, dims)),
                  features = c10::multiply_integers(sizes.slice(1 + dims));
    if (positions >= all) return windows.reshape({examples * all, features});
    auto generator = at::detail::createCPUGenerator(seed);
    auto place = at::randint(all, {examples * positions}, generator, at::kLong);
    std::vector<at::Tensor> digits(static_cast<size_t>(dims));  // of `place`, the last dimension fastest
    for (int64_t d = dims - 1; d >= 0; --d) {
        digits[d] = place.remainder(sizes[1 + d]);
        place = place.floor_divide(sizes[1 + d]);
    }
    c10::List<std::optional<at::Tensor>> index;
    index.push_back(at::arange(examples).repeat_interleave(positions));
    for (const auto& digit : digits) index.push_back(digit);
    return at::index(windows, index).reshape({examples * positions, features});
}

std::vector<Reader> readers(const Model& model) {
    std::vector<Reader> result;
    for (auto* node : all_nodes(*model.graph())) {
        const auto add = [&](const Value* input, const Value* weight, const Value* bias, int64_t weight_in,
                             std::optional<ConvView> conv) {
            const auto name = attribute_name(weight);
            const auto position = position_of(node, input);
            if (!name || !position) return;
            Reader reader;
            reader.node = node;
            reader.input = *position;
            reader.weight = *name;
            if (bias)
                if (const auto bias_name = attribute_name(bias);
                    bias_name && get_attribute(model, *bias_name).isTensor())
                    reader.bias = *bias_name;
            reader.weight_in = weight_in;
            reader.weight_out = 1 - weight_in;
            reader.conv = conv;
            const auto sizes = get_attribute(model, *name).toTensor().sizes();
            reader.inputs = sizes[weight_in];
            if (conv) reader.kernel = sizes.slice(2).vec();
            result.push_back(std::move(reader));
        };
        if (const auto conv = as_conv(node); conv && conv->groups == 1) {
            add(conv->input, conv->weight, conv->has_bias ? conv->bias : nullptr, conv->transposed ? 0 : 1, conv);
        } else if (const auto linear = as_linear(node)) {
            add(linear->input, linear->weight, linear->has_bias ? linear->bias : nullptr,
                linear->weight_transposed ? 0 : 1, std::nullopt);
        } else if (node->kind() == torch::jit::aten::matmul && attribute_name(node->inputs()[1]) &&
                   get_attribute(model, *attribute_name(node->inputs()[1])).toTensor().dim() == 2) {
            // x @ W with a bare parameter, which may have any rank: no LinearView.
            add(node->inputs()[0], node->inputs()[1], nullptr, 0, std::nullopt);
        } else if (const auto recurrent = as_recurrent(node)) {
            // The weights of the first layer that read the input: one per direction.
            const size_t directions = recurrent->bidirectional ? 2 : 1;
            const size_t per_cell = recurrent->weights.size() / (directions * static_cast<size_t>(recurrent->layers));
            for (size_t direction = 0; direction < directions; ++direction)
                add(recurrent->input, recurrent->weights[direction * per_cell], nullptr, 1, std::nullopt);
        }
    }
    std::map<std::string, int64_t> uses;
    for (const auto& reader : result) ++uses[reader.bias];
    for (auto& reader : result)
        if (uses[reader.bias] > 1) reader.bias.clear();
    return result;
}

at::Tensor Tap::maps(const at::Tensor& x) const {
    // Without a dimension of examples before the channels there is one example.
    const auto channels_second = dim == 0 ? x.unsqueeze(0) : x.movedim(dim, 1);
    auto sizes = channels_second.sizes().vec();
    sizes.erase(sizes.begin() + 1);
    sizes.insert(sizes.begin() + 1, {indices.size(0), indices.size(1)});
    return channels_second.index_select(1, indices.flatten()).reshape(sizes);
}

std::vector<Tap> taps_of_reader(const Groups& groups, const Reader& reader) {
    const int64_t rank = rank_of(groups, reader.value());
    if (rank == 0) return {};
    auto taps = taps_of(groups, reader.value(), reader.channel_dim(rank));
    for (auto& tap : taps) {
        tap.node = reader.node;
        tap.port = reader.input;
    }
    return taps;
}

void check_observation(const char* where, const ObserveOptions& options) {
    if (options.batches < 1 || options.batch_size < 1)
        throw InvalidArgument(where, "batches and batch_size must be at least 1",
                              "The defaults are in `coppice list`.");
}

std::vector<Tap> find_taps(const Model& model, const Groups& groups, const char* where) {
    std::vector<Tap> taps;
    std::vector<bool> seen(groups.all().size(), false);
    std::set<const Value*> values;
    for (const auto& reader : readers(model)) {
        if (!values.insert(reader.value()).second) continue;
        for (auto& tap : taps_of_reader(groups, reader)) taps.push_back(std::move(tap));
    }
    for (const auto& tap : taps) seen[tap.group] = true;
    const size_t read = taps.size();
    const LayerNames names(model);
    for (size_t g = 0; g < groups.all().size(); ++g) {
        if (seen[g]) continue;
        for (const auto& layer : groups.all()[g].layers) {
            const Node* node = names.find(layer);
            if (!node) continue;
            for (size_t port = 0; port < node->outputs().size(); ++port)
                for (int64_t dim = 0; dim < rank_of(groups, node->outputs()[port]); ++dim)
                    for (auto& tap : taps_of(groups, node->outputs()[port], dim)) {
                        if (seen[tap.group]) continue;
                        tap.node = node;
                        tap.port = port;
                        tap.written = true;
                        taps.push_back(std::move(tap));
                    }
        }
    }
    for (size_t i = read; i < taps.size(); ++i) seen[taps[i].group] = true;
    for (size_t g = 0; g < seen.size(); ++g)
        if (!seen[g])
            throw UnsupportedModel(std::string(where) + " at " + groups.all()[g].name,
                                   "no operator reads or writes its channels side by side",
                                   "Use a criterion that looks at weights, such as magnitude.");
    return taps;
}

void observe(const Model& model, const Observation& how, Context& context, const std::vector<Tap>& taps,
             const std::function<void(const Tap&, const at::Tensor& x)>& visit) {
    std::map<const Node*, std::vector<const Tap*>> before, after;
    for (const auto& tap : taps) (tap.written ? after : before)[tap.node].push_back(&tap);
    const auto call = [&](const auto& table, const Node* node, const std::vector<c10::IValue>& values) {
        const auto found = table.find(node);
        if (found == table.end()) return;
        for (const Tap* tap : found->second) visit(*tap, checked(how, tap->value, values[tap->port]));
    };
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& values) { call(before, node, values); };
    hooks.after = [&](const Node* node, std::vector<c10::IValue>& values) { call(after, node, values); };
    run(model, how, context, hooks);
}

void observe(const Model& model, const Observation& how, Context& context, const std::vector<Reader>& readers,
             const std::function<void(const Reader&, const at::Tensor& x)>& visit) {
    std::map<const Node*, std::vector<const Reader*>> before;
    for (const auto& reader : readers) before[reader.node].push_back(&reader);
    NodeHooks hooks;
    hooks.before = [&](const Node* node, std::vector<c10::IValue>& values) {
        const auto found = before.find(node);
        if (found == before.end()) return;
        for (const Reader* reader : found->second) visit(*reader, checked(how, reader->value(), values[reader->input]));
    };
    run(model, how, context, hooks);
}

std::vector<at::Tensor> mean_over_maps(const Model& model, const Groups& groups, const Observation& how,
                                       Context& context,
                                       const std::function<at::Tensor(const at::Tensor& maps)>& figure) {
    const auto taps = find_taps(model, groups, how.where);
    std::map<const Tap*, std::pair<at::Tensor, double>> sums;
    observe(model, how, context, taps, [&](const Tap& tap, const at::Tensor& x) {
        const auto maps = tap.maps(x);
        const auto examples = static_cast<double>(maps.size(0));
        auto& [sum, count] = sums[&tap];
        const auto values = figure(maps).to(at::kDouble) * examples;
        sum = sum.defined() ? sum + values : values;
        count += examples;
    });
    std::vector<at::Tensor> scores;
    std::vector<int64_t> used(groups.all().size(), 0);
    for (const auto& group : groups.all()) scores.push_back(at::zeros({group.channels}, at::kDouble));
    for (const auto& tap : taps) {
        const auto found = sums.find(&tap);
        if (found == sums.end()) continue;  // a branch that the calibration data did not take
        scores[tap.group] += found->second.first / found->second.second;
        ++used[tap.group];
    }
    for (size_t g = 0; g < scores.size(); ++g) {
        if (used[g] == 0)
            throw UnsupportedModel(std::string(how.where) + " at " + groups.all()[g].name,
                                   "the calibration data did not reach it", "Use criterion magnitude.");
        scores[g] /= static_cast<double>(used[g]);
    }
    return scores;
}

}  // namespace coppice::prune
