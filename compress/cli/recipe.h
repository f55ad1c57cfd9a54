/// Recipes: YAML text to Settings with a place on everything, and Settings to what a run needs.
#pragma once

#include <coppice/eval.h>
#include <coppice/pipeline.h>

#include <filesystem>
#include <string>
#include <vector>

namespace coppice::cli {

/// Reads one YAML document. Every Setting carries its place, "<name> line 4, column 7"; that of a map's member is where
/// its key stands. @throws InvalidArgument on a syntax error, a key given twice, a key that is no text, several
/// documents
Setting parse_yaml(const std::string& text, const std::string& name);

/// Applies `stages.0.ratio=0.3`: the path may leave out a stage's name, the value is YAML. Maps and members that do not
/// exist are made. @throws InvalidArgument when the path leads nowhere
void apply_override(Setting& root, const std::string& assignment);

/// Block-style YAML that parse_yaml reads back as the same values.
std::string to_yaml(const Json& value);

/// The same values without places: null, texts, arrays, objects. For tests and for comparing.
Json to_json(const Setting& setting);

/// One argument of forward.
struct InputSpec {
    at::ScalarType dtype = at::kFloat;
    std::vector<int64_t> shape;
    int64_t high = 0;  ///< integers: values 0 .. high - 1 in turn; 0: all ones
    /// Floats: normal numbers from a fixed seed; integers and bools as above, else ones.
    at::Tensor make(uint64_t seed) const;
    std::string to_string() const;  ///< "int64:1,128"
};

/// Reads "1,3,224,224", "int64:1,128" or "int64<30522:1,128" (values below 30522).
/// @throws InvalidArgument placed at `where`
InputSpec parse_input(const std::string& text, const std::string& where);

struct Recipe {
    std::filesystem::path file, base;  ///< base: absolute folder that relative paths are relative to
    std::filesystem::path model;       ///< absolute; empty when the recipe names none
    std::string model_where;
    std::vector<InputSpec> inputs;  ///< empty: taken from the data
    Setting data;                   ///< kNull: none
    Task task = Task::kClassification;
    std::string metric;
    uint64_t seed = 0;
    int threads = 0;
    std::vector<PipelineStage> stages;  ///< deploy included
    PipelineOptions pipeline;
    eval::MeasureOptions measure;
    std::vector<std::string> report_formats;
    std::string report_title;
    Json resolved;  ///< every default spelled out; `data` as written, until the data are open
};

/// Reads, overrides, checks every section and makes every stage. Touches neither model nor data.
/// @param needs_model  false for `coppice eval`, which names its models on the command line
/// @throws InvalidArgument with line, column and the nearest known name; IoError when the file cannot be read
Recipe read_recipe(const std::filesystem::path& file, const std::vector<std::string>& overrides,
                   bool needs_model = true);

/// The same for settings that no file holds. Relative paths are relative to the current folder.
Recipe recipe_from_settings(Setting root, const std::vector<std::string>& overrides,
                            const std::filesystem::path& file = {}, bool needs_model = false);

/// Arguments for one run: real examples where the data have the shape that the recipe asks for (or it asks for none),
/// else made from the shapes. @throws InvalidArgument when there is neither
Inputs example_inputs(const Recipe& recipe, const DataSplits& data);
Inputs example_inputs(const std::vector<InputSpec>& specs);

/// Every split that there is, with its number of examples and the SHA-256 of its content.
Json data_manifest(const DataSplits& data);
/// manifest.json of a run that begins with `model`. The recipe's `resolved` is complete once the data are open.
Json run_manifest(const Recipe& recipe, const DataSplits& data, const std::filesystem::path& model);

}  // namespace coppice::cli
