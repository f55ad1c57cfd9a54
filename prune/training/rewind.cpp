// The early model loses the channels that the trained one lost; what is left is the ticket.
#include <coppice/error.h>
#include <coppice/prune.h>

namespace coppice::prune {

Model rewind(const Model& model, const Model& early, const Inputs& example, const Removal& removal,
             const GroupOptions& grouping) {
    const std::string where = "prune.rewind";
    std::map<std::string, at::Tensor> known;
    for (const auto& named : named_tensors(early)) known[named.name] = named.tensor;
    const auto tensors = named_tensors(model);
    for (const auto& named : tensors) {
        const auto found = known.find(named.name);
        if (found == known.end())
            throw InvalidArgument(where, "the early model has no " + named.name,
                                  "Give a file of the same architecture, saved earlier in the training.");
        if (found->second.sizes() != named.tensor.sizes() || found->second.dtype() != named.tensor.dtype())
            throw InvalidArgument(where, named.name + " of the early model has another shape or type",
                                  "Give a file of the same architecture and widths, saved earlier in the training.");
    }
    const auto facts = Facts::observe(early, example);
    const auto groups = find_groups(early, facts, grouping),
               of_model = find_groups(model, Facts::observe(model, example), grouping);
    bool same = groups.all().size() == of_model.all().size();
    for (size_t g = 0; same && g < groups.all().size(); ++g)
        same = groups.all()[g].name == of_model.all()[g].name && groups.all()[g].channels == of_model.all()[g].channels;
    if (!same)
        throw InvalidArgument(where, "the channels of the early model hang together in another way",
                              "Give a file of the same architecture, saved earlier in the training.");
    return cut(early, facts, groups, removal);
}

}  // namespace coppice::prune
