// TrainOptions: from a recipe, and checked wherever they come from.
#include "train/options.h"

#include <coppice/error.h>

#include <cmath>

namespace coppice {

TrainOptions TrainOptions::read(Options& o) {
    return coppice::read(o, {});
}

TrainOptions read(Options& o, TrainOptions t) {
    t.epochs = o.integer("epochs", t.epochs, 1, 1000000, "passes over the training data");
    t.batch_size = o.integer("batch_size", t.batch_size, 1, INT64_MAX, "examples in a step");
    t.optimizer = o.choice("optimizer", t.optimizer, {"sgd", "adamw"}, "sgd has Nesterov momentum");
    t.lr = o.number_in("lr", t.lr, 0, 1e6, "learning rate after the warm-up");
    t.momentum = o.number_in("momentum", t.momentum, 0, 1, "of sgd; 0: plain gradient descent");
    t.weight_decay =
        o.number_in("weight_decay", t.weight_decay, 0, 1e6, "sgd: added to the gradient; adamw: decoupled");
    t.decay_vectors = o.boolean("decay_vectors", t.decay_vectors, "decay biases and normalisation weights, too");
    t.schedule = o.choice("schedule", t.schedule, {"constant", "cosine", "step"}, "of the learning rate, per step");
    t.milestones =
        o.integers("milestones", t.milestones, "schedule step: epochs after which lr is multiplied by gamma");
    t.gamma = o.number_in("gamma", t.gamma, 0, 1, "schedule step: the factor");
    t.warmup_epochs =
        o.number_in("warmup_epochs", t.warmup_epochs, 0, 1e6, "epochs in which lr rises from 0 on a line");
    t.label_smoothing =
        o.number_in("label_smoothing", t.label_smoothing, 0, 0.999, "share of the target spread over all classes");
    t.crop_padding =
        o.integer("crop_padding", t.crop_padding, 0, 1024, "random crop after this many pixels of zeros; 0: off");
    t.flip = o.boolean("flip", t.flip, "mirror every other image, at random");
    t.autocast =
        o.choice("autocast", t.autocast, {"auto", "bf16", "off"}, "auto: bf16 where the CPU has instructions for it");
    t.channels_last =
        o.boolean("channels_last", t.channels_last, "memory order of images and their weights; faster on CPUs");
    t.clip_norm = o.number_in("clip_norm", t.clip_norm, 0, 1e12, "longest gradient, all parameters together; 0: off");
    t.drop_last = o.boolean("drop_last", t.drop_last, "leave out the last batch of an epoch when it is not full");
    t.seed = static_cast<uint64_t>(
        o.integer("seed", static_cast<int64_t>(t.seed), 0, INT64_MAX, "of order, augmentation, dropout"));
    t.checkpoint_every_epochs = o.integer("checkpoint_every_epochs", t.checkpoint_every_epochs, 1, 1000000, "");
    t.max_energy_j = o.number_in("max_energy_j", t.max_energy_j, 0, 1e15, "budget in J that ends training; 0: none");
    t.max_carbon_g = o.number_in("max_carbon_g", t.max_carbon_g, 0, 1e12, "budget in g CO2e; 0: none");
    t.max_time_s = o.number_in("max_time_s", t.max_time_s, 0, 1e12, "budget in seconds; 0: none");
    t.keep =
        o.choice("keep", t.keep, {"auto", "best", "last"},
                 "epoch whose weights stay; auto: the best by the metric where a budget ended training, else last");
    if (t.schedule != "step" && !t.milestones.empty())
        throw o.error("milestones", "are given, but schedule is " + t.schedule, "Set schedule: step.");
    check(t);
    return t;
}

void check(const TrainOptions& t) {
    const auto require = [](bool good, const std::string& problem, const std::string& fix) {
        if (!good) throw InvalidArgument("train", problem, fix);
    };
    const auto one_of = [&](const char* name, const std::string& value, const std::vector<std::string>& allowed) {
        std::string text;
        for (const auto& item : allowed) text += (text.empty() ? "" : ", ") + item;
        require(std::find(allowed.begin(), allowed.end(), value) != allowed.end(),
                std::string(name) + " is \"" + value + "\"", "Known: " + text + ".");
    };
    one_of("optimizer", t.optimizer, {"sgd", "adamw"});
    one_of("schedule", t.schedule, {"constant", "cosine", "step"});
    one_of("autocast", t.autocast, {"auto", "bf16", "off"});
    require(t.epochs >= 1, "epochs is " + std::to_string(t.epochs), "It must be at least 1.");
    require(t.batch_size >= 1, "batch_size is " + std::to_string(t.batch_size), "It must be at least 1.");
    require(t.checkpoint_every_epochs >= 1, "checkpoint_every_epochs must be at least 1", "");
    require(std::isfinite(t.lr) && t.lr >= 0, "lr is " + std::to_string(t.lr), "It must be at least 0.");
    require(t.momentum >= 0 && t.momentum < 1, "momentum is " + std::to_string(t.momentum), "It must be in [0, 1).");
    require(t.weight_decay >= 0, "weight_decay is " + std::to_string(t.weight_decay), "It must be at least 0.");
    require(t.label_smoothing >= 0 && t.label_smoothing < 1, "label_smoothing is " + std::to_string(t.label_smoothing),
            "It must be in [0, 1).");
    require(t.warmup_epochs >= 0 && t.warmup_epochs <= static_cast<double>(t.epochs),
            "warmup_epochs is " + std::to_string(t.warmup_epochs) + " of " + std::to_string(t.epochs) + " epochs",
            "It must be in [0, epochs].");
    one_of("keep", t.keep, {"auto", "best", "last"});
    for (const auto& [name, value] :
         {std::pair("max_energy_j", t.max_energy_j), {"max_carbon_g", t.max_carbon_g}, {"max_time_s", t.max_time_s}})
        require(value >= 0, std::string(name) + " is " + std::to_string(value), "It must be at least 0; 0: no budget.");
    require(t.crop_padding >= 0, "crop_padding is " + std::to_string(t.crop_padding), "It must be at least 0.");
    require(t.clip_norm >= 0, "clip_norm is " + std::to_string(t.clip_norm), "It must be at least 0.");
    for (const int64_t milestone : t.milestones)
        require(milestone >= 1, "milestone " + std::to_string(milestone) + " is no epoch", "Milestones count from 1.");
}

Json to_json(const TrainOptions& t) {
    return {{"epochs", t.epochs},
            {"batch_size", t.batch_size},
            {"optimizer", t.optimizer},
            {"lr", t.lr},
            {"momentum", t.momentum},
            {"weight_decay", t.weight_decay},
            {"decay_vectors", t.decay_vectors},
            {"schedule", t.schedule},
            {"milestones", t.milestones},
            {"gamma", t.gamma},
            {"warmup_epochs", t.warmup_epochs},
            {"label_smoothing", t.label_smoothing},
            {"crop_padding", t.crop_padding},
            {"flip", t.flip},
            {"autocast", t.autocast},
            {"channels_last", t.channels_last},
            {"clip_norm", t.clip_norm},
            {"drop_last", t.drop_last},
            {"max_energy_j", t.max_energy_j},
            {"max_carbon_g", t.max_carbon_g},
            {"max_time_s", t.max_time_s},
            {"keep", t.keep},
            {"seed", t.seed}};
}

}  // namespace coppice
