// distill.logits = train.finetune with another default for `loss`. Nothing is copied: the foundation's factory is run
// on the same settings with the loss filled in, and what it asked for and resolved is handed on.
#include <coppice/distill.h>
#include <coppice/train.h>

namespace coppice::distill {
namespace {

const char* const kDefaultLoss = "distill.logits";

std::unique_ptr<Stage> with_default_loss(const Entry<Stage>& finetune, Options& options) {
    // A first run on no settings says which options there are.
    Options defaults(options.owner());
    finetune.make(defaults);

    std::vector<std::pair<std::string, Setting>> members;
    for (auto asked : defaults.asked()) {
        if (asked.name == "loss") asked.default_text = kDefaultLoss;
        options.remember(asked);
        if (const Setting* given = options.raw(asked.name))
            members.emplace_back(asked.name, *given);
        else if (asked.name == "loss")
            members.emplace_back("loss", Setting::scalar(kDefaultLoss, options.where()));
    }
    Options filled(options.owner(), Setting::map(std::move(members), options.where()));
    auto stage = finetune.make(filled);
    for (const auto& [name, value] : filled.resolved().items()) options.resolve(name, value);
    return stage;
}

}  // namespace

std::vector<Entry<Stage>> stages(std::vector<Entry<Loss>> losses) {
    const auto of_training = train_stages(std::move(losses));
    const auto finetune = find_entry(of_training, "stage", "train.finetune", "distill.logits");
    return {{"distill.logits", "fine-tunes with the teacher's softened outputs (arXiv 1503.02531)",
             [finetune](Options& options) { return with_default_loss(finetune, options); }}};
}

}  // namespace coppice::distill
