// One mask per group over its channels, 1 for those that stay, and per parameter the product of the masks along its
// dimensions: a convolution's weight is masked by the group of its outputs and by that of its inputs. Zero weights that
// read a channel make up for activations that are not zero at zero, and zero weights that produce and scale it for
// everything that is added to it.
//
// Soft masks (arXiv 1808.06866) only set the producing weights to zero, once: with the reading weights at zero, or a
// batch norm's scale and bias, no gradient would reach a channel any more and it could never grow back.
//
// The groups belong to `apart`, the model with fused attention written out, which holds the same tensors: what masks
// and training do to the model's parameters, criteria see there.
#include <coppice/error.h>
#include <coppice/prune.h>

#include "groups/unfuse.h"
#include "schedule/rescore.h"

namespace coppice::prune {
namespace {

/// Eval mode, and back to what each module was in.
class EvalMode {
public:
    explicit EvalMode(const Model& model) : model_(model) {
        for (const auto& module : model_.module().modules()) training_.push_back(flag(module));
        model_.eval();
    }
    ~EvalMode() {
        size_t i = 0;
        for (auto module : model_.module().modules()) {
            if (const auto slot = module.type()->findAttributeSlot("training"); slot && training_[i])
                module._ivalue()->setSlot(*slot, *training_[i]);
            ++i;
        }
    }
    EvalMode(const EvalMode&) = delete;

private:
    static std::optional<bool> flag(const torch::jit::Module& module) {
        const auto slot = module.type()->findAttributeSlot("training");
        if (!slot) return std::nullopt;
        const auto value = module._ivalue()->getSlot(*slot);
        return value.isBool() ? std::optional<bool>(value.toBool()) : std::nullopt;
    }

    Model model_;
    std::vector<std::optional<bool>> training_;
};

void check_removal(const Groups& groups, const Removal& removal) {
    const std::string where = "prune.masker";
    if (removal.size() != groups.all().size())
        throw InvalidArgument(where,
                              "the removal has " + std::to_string(removal.size()) + " lists for " +
                                  std::to_string(groups.all().size()) + " groups",
                              "Give one list per group.");
    for (size_t g = 0; g < removal.size(); ++g) {
        const auto& group = groups.all()[g];
        for (size_t i = 0; i < removal[g].size(); ++i)
            if (removal[g][i] < 0 || removal[g][i] >= group.channels || (i && removal[g][i] <= removal[g][i - 1]))
                throw InvalidArgument(where + " at " + group.name,
                                      "channel " + std::to_string(removal[g][i]) + " is out of range or out of order",
                                      "Give sorted channels below " + std::to_string(group.channels) + ".");
        if (static_cast<int64_t>(removal[g].size()) == group.channels)
            throw InvalidArgument(where + " at " + group.name,
                                  "all " + std::to_string(group.channels) + " channels would go", "Keep at least one.");
    }
}

}  // namespace

struct Masker::State {
    /// A parameter that masks reach.
    struct Masked {
        std::string name;
        at::Tensor parameter;  // the model's
        at::Tensor mask;       // ones and zeros, of size 1 in dimensions that no group touches; broadcasts
        at::Tensor stored;     // values of masked weights from before
    };
    struct Along {
        size_t masked, group;
        int64_t dim;
        at::Tensor channel_of;  // int64 [size of dim], `channels` where an index belongs to no channel of the group
    };

    State(const Model& given, Inputs inputs, bool is_soft, const GroupOptions& found_with)
        : model(given), example(std::move(inputs)), soft(is_soft), grouping(found_with), cost(Groups()) {
        const EvalMode eval(model);
        torch::NoGradGuard no_grad;
        apart = unfuse_attention(model);
        share();
        facts = Facts::observe(apart, example);
        groups = find_groups(apart, facts, grouping);
        cost = CostModel(apart, example, groups);
        std::map<std::string, size_t> index;
        for (size_t g = 0; g < groups.all().size(); ++g) {
            const auto& group = groups.all()[g];
            masks.push_back(at::ones({group.channels}, at::kDouble));
            scores.push_back(at::zeros({group.channels}, at::kDouble));
            removal.emplace_back();
            // A bias has no dimension of its own that is produced: it belongs to the layer of its name.
            const std::set<std::string> producers(group.layers.begin(), group.layers.end());
            for (const auto& slice : group.slices) {
                const bool own = slice.produces || (slice.tensor.dim() == 1 && producers.count(slice.layer));
                if (!slice.parameter || !slice.tensor.is_floating_point() || (soft && !own)) continue;
                const auto [found, added] = index.emplace(slice.name, masked.size());
                if (added) {
                    const auto tensor = get_attribute(model, slice.name).toTensor();
                    const std::vector<int64_t> ones(static_cast<size_t>(tensor.dim()), 1);
                    masked.push_back({slice.name, tensor, at::ones(ones, tensor.detach().options()),
                                      soft ? at::Tensor() : tensor.detach().clone()});
                }
                auto channel_of = at::tensor(slice.channel_of, at::kLong);
                channel_of = channel_of.masked_fill(channel_of.lt(0), group.channels);
                along.push_back({found->second, g, slice.dim, channel_of});
            }
        }
    }

    /// Batch-norm statistics, for one, may have been replaced since.
    void share() {
        if (apart.graph() != model.graph()) share_tensors(apart, model);
    }

    void apply() {
        torch::NoGradGuard no_grad;
        for (auto& entry : masked) entry.parameter.mul_(entry.mask);
    }

    /// Makes the parameters' masks from those of the groups, and moves values into and out of store.
    void update() {
        torch::NoGradGuard no_grad;
        auto before = refresh();
        for (size_t i = 0; i < masked.size(); ++i) {
            auto& entry = masked[i];
            if (!soft) {
                // In place: a checkpoint holds on to this tensor.
                entry.stored.copy_(at::where(before[i].to(at::kBool), entry.parameter, entry.stored));
                entry.parameter.copy_(entry.stored);
            }
            entry.parameter.mul_(entry.mask);
        }
    }

    /// The parameters' masks anew. @return those from before
    std::vector<at::Tensor> refresh() {
        std::vector<at::Tensor> before;
        for (auto& entry : masked) {
            before.push_back(entry.mask);
            entry.mask = at::ones(std::vector<int64_t>(static_cast<size_t>(entry.parameter.dim()), 1),
                                  entry.parameter.detach().options());
        }
        for (const auto& [i, g, dim, channel_of] : along) {
            const auto with_rest = at::cat({masks[g], at::ones({1}, at::kDouble)});  // the last: no channel
            std::vector<int64_t> shape(static_cast<size_t>(masked[i].parameter.dim()), 1);
            shape[static_cast<size_t>(dim)] = channel_of.size(0);
            masked[i].mask = masked[i].mask * with_rest.index_select(0, channel_of).reshape(shape).to(masked[i].mask);
        }
        return before;
    }

    Model model, apart;
    Inputs example;
    bool soft;
    GroupOptions grouping;
    Facts facts;
    Groups groups;
    CostModel cost;
    Removal removal;
    std::vector<at::Tensor> masks;   // per group, float64 [channels]: 1 stays
    std::vector<at::Tensor> scores;  // per group, float64 [channels]: as last seen
    std::vector<Masked> masked;
    std::vector<Along> along;
};

Masker::Masker(const Model& model, const Inputs& example, bool soft, const GroupOptions& grouping)
    : state_(std::make_shared<State>(model, example, soft, grouping)) {}

const Groups& Masker::groups() const {
    return state_->groups;
}

const CostModel& Masker::cost() const {
    return state_->cost;
}

const Removal& Masker::removal() const {
    return state_->removal;
}

void Masker::mask(const Removal& removal) {
    auto& s = *state_;
    check_removal(s.groups, removal);
    torch::NoGradGuard no_grad;
    for (size_t g = 0; g < removal.size(); ++g) {
        s.masks[g].fill_(1);
        if (!removal[g].empty()) s.masks[g].index_fill_(0, at::tensor(removal[g], at::kLong), 0);
    }
    s.removal = removal;
    s.update();
}

void Masker::grow(const Criterion& criterion, const Allocation& allocation, const Target& target, Context& context) {
    auto& s = *state_;
    const EvalMode eval(s.model);
    s.share();
    bool any = false;
    for (const auto& channels : s.removal) any |= !channels.empty();
    const auto scores =
        any && !s.soft ? rescored(s.apart, s.facts, s.groups, s.removal, s.scores, criterion, {}, context, s.grouping)
                       : criterion.scores(s.apart, s.groups, context);
    Target now = target;
    if (const auto ratios = allocation.sensitivity_ratios(); !ratios.empty() && now.sensitivity.empty())
        now.sensitivity = sensitivity_curves(s.apart, s.facts, s.groups, scores, now, ratios, context);
    for (size_t g = 0; g < scores.size(); ++g) s.scores[g].copy_(scores[g]);
    mask(allocation.allocate(s.groups, scores, s.cost, now));
}

void Masker::apply() {
    if (!state_->soft) state_->apply();
}

void Masker::mask_gradients() {
    if (state_->soft) return;
    torch::NoGradGuard no_grad;
    for (auto& entry : state_->masked)
        if (auto gradient = entry.parameter.grad(); gradient.defined()) gradient.mul_(entry.mask);
}

TrainCallbacks Masker::callbacks(TrainCallbacks others) const {
    TrainCallbacks result = others;
    result.on_gradients = [masker = *this, then = others.on_gradients](Trainable& module) mutable {
        if (then) then(module);
        masker.mask_gradients();
    };
    result.after_step = [masker = *this, then = others.after_step](Trainable& module) mutable {
        if (then) then(module);
        masker.apply();
    };
    return result;
}

std::vector<std::pair<std::string, at::Tensor>> Masker::state() const {
    std::vector<std::pair<std::string, at::Tensor>> tensors;
    for (size_t g = 0; g < state_->masks.size(); ++g) {
        tensors.emplace_back("mask." + std::to_string(g), state_->masks[g]);
        tensors.emplace_back("score." + std::to_string(g), state_->scores[g]);
    }
    for (const auto& entry : state_->masked)
        if (entry.stored.defined()) tensors.emplace_back("stored." + entry.name, entry.stored);
    return tensors;
}

void Masker::restore() {
    auto& s = *state_;
    for (size_t g = 0; g < s.masks.size(); ++g) {
        const auto gone = s.masks[g].eq(0).nonzero().squeeze(1);
        s.removal[g].assign(gone.data_ptr<int64_t>(), gone.data_ptr<int64_t>() + gone.numel());
    }
    s.refresh();
}

Model Masker::cut() const {
    const auto& s = *state_;
    const EvalMode eval(s.model);
    // Found anew: batch-norm statistics may have been replaced since.
    const auto model = unfuse_attention(s.model);
    const auto facts = Facts::observe(model, s.example);
    return prune::cut(model, facts, find_groups(model, facts, s.grouping), s.removal);
}

}  // namespace coppice::prune
