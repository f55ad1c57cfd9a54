/// The tables of all modules together: what a recipe can name.
#pragma once

#include <coppice/registry.h>
#include <coppice/stage.h>

#include <functional>
#include <string>
#include <vector>

namespace coppice::cli {

/// Stages of all modules, sorted by name.
const std::vector<Entry<Stage>>& all_stages();
/// Losses of the foundation and of distill, sorted by name.
const std::vector<Entry<Loss>>& all_losses();

/// One row of any table, for `coppice list`.
struct Listed {
    std::string name, summary;
    /// Options as the factory asked for them when it was run without any; `note` says why it stopped before the end.
    std::function<std::vector<Options::Asked>(std::string& note)> options;
};

/// A family of algorithms, with the place in a recipe where its names may stand.
struct Family {
    std::string name, place;
    std::vector<Listed> rows;
};

/// Every table of every module.
std::vector<Family> all_families();

}  // namespace coppice::cli
