// A dict of tensors as torch.save and torch::pickle_save write it: which keys are inputs, how they become what the
// model takes, which key is the target.
#include <torch/serialize.h>

#include <coppice/error.h>

#include "data/formats.h"

namespace coppice::formats {
namespace {

/// One argument of forward: a stored tensor and what each batch of it goes through.
struct Prepared {
    at::Tensor stored;  ///< as in the file: small types stay small
    at::ScalarType dtype = at::kFloat;
    double scale = 1, divide = 1;
    at::Tensor mean, std;  ///< float, shaped to broadcast over dimension 1; undefined: off
    int64_t unsqueeze = 0;
    bool mask = false;

    at::Tensor operator()(at::Tensor batch, bool pairs) const {
        if (pairs) batch = batch.flatten(0, 1);  // [N, 2, ...] -> [2N, ...]
        batch = mask ? (batch > 0).to(dtype) : batch.to(dtype);
        if (scale != 1) batch = batch * scale;
        if (divide != 1) batch = batch / divide;
        if (mean.defined()) batch = batch - mean;
        if (std.defined()) batch = batch / std;
        if (unsqueeze > 0) batch = batch.unsqueeze(unsqueeze);
        return batch;
    }
};

std::string text_of(at::IntArrayRef shape) {
    std::string text;
    for (const int64_t extent : shape) text += (text.empty() ? "[" : ", ") + std::to_string(extent);
    return text.empty() ? "[]" : text + "]";
}

using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

Tensors unpickle(const File& file) {
    c10::IValue value;
    try {
        value = torch::pickle_load(std::vector<char>(file.bytes.begin(), file.bytes.end()));
    } catch (const std::exception& error) {
        std::throw_with_nested(IoError(file.path, "is no pickled dict of tensors: " + message_of(error),
                                       "Write it by torch.save({\"key\": tensor}, file) or torch::pickle_save."));
    }
    if (!value.isGenericDict())
        throw IoError(file.path, "holds a " + value.tagKind() + ", not a dict of tensors",
                      "Write it by torch.save({\"key\": tensor}, file) or torch::pickle_save.");
    Tensors tensors;
    for (const auto& item : value.toGenericDict())
        if (item.key().isString() && item.value().isTensor())
            tensors.emplace_back(item.key().toStringRef(), item.value().toTensor().detach().contiguous());
    if (tensors.empty()) throw IoError(file.path, "its dict holds no tensor under a text key", "");
    return tensors;
}

const at::Tensor& find(const Tensors& tensors, const std::string& key, const std::string& option, const File& file,
                       const Options& options) {
    std::string present;
    for (const auto& [name, tensor] : tensors) {
        if (name == key) return tensor;
        present += (present.empty() ? "" : ", ") + name + " " + text_of(tensor.sizes());
    }
    throw options.error(option, "is \"" + key + "\", no key of " + file.path, "Keys present: " + present + ".");
}

/// What a model takes when nothing else is said: indices stay indices, everything else becomes float32.
at::ScalarType natural_dtype(at::ScalarType stored) {
    if (stored == at::kInt || stored == at::kLong) return at::kLong;
    return stored == at::kBool ? at::kBool : at::kFloat;
}

at::ScalarType read_dtype(Options& options, const std::string& default_name, at::ScalarType stored) {
    const auto name = options.choice("dtype", default_name, {"auto", "bool", "float32", "float64", "int64"},
                                     "auto: int32 and int64 become int64, other numbers float32");
    if (name == "auto") return natural_dtype(stored);
    return name == "bool" ? at::kBool : name == "float32" ? at::kFloat : name == "float64" ? at::kDouble : at::kLong;
}

class TensorFile final : public Dataset {
public:
    std::vector<Prepared> inputs;
    at::Tensor target;       ///< int64 or float32; undefined: unlabelled
    at::Tensor output_rows;  ///< set: the whole file is one example, `target` is already cut to these rows
    bool pairs = false;
    int64_t count = 0;
    std::string text, hash;

    int64_t size() const override { return count; }
    std::string description() const override { return text; }
    std::string fingerprint() const override { return hash; }

    Batch batch(const std::vector<int64_t>& indices) const override {
        check_indices(indices, count, text);
        Batch batch;
        if (output_rows.defined()) {
            if (indices.size() != 1) throw InvalidArgument(text, "is one example, a batch of it has one", "");
            for (const auto& input : inputs) batch.inputs.emplace_back(input(input.stored, false));
            batch.target = target;
            batch.rows = output_rows;
            return batch;
        }
        const auto index = at::tensor(indices, at::kLong);
        for (const auto& input : inputs) batch.inputs.emplace_back(input(input.stored.index_select(0, index), pairs));
        if (target.defined()) batch.target = target.index_select(0, index);
        batch.pairs = pairs;
        return batch;
    }
};

std::vector<std::pair<std::string, Setting>> read_inputs(Options& options) {
    const auto* setting = options.raw("inputs",
                                      "keys of the arguments of forward, in order: key, or {key: {dtype, scale, "
                                      "divide, mean, std, unsqueeze, mask}}");
    if (!setting)
        throw options.error("inputs", "is missing", "Name the keys of the arguments of forward, as inputs: [image].");
    std::vector<std::pair<std::string, Setting>> inputs;
    if (setting->kind == Setting::Kind::kList)
        for (const auto& item : setting->items) inputs.push_back(name_and_options(item, "an input"));
    else if (setting->kind == Setting::Kind::kMap)
        for (const auto& member : setting->members)
            inputs.push_back(name_and_options(Setting::map({member}), "an input"));
    else
        inputs.push_back(name_and_options(*setting, "inputs"));
    if (inputs.empty()) throw options.error("inputs", "is empty", "Name at least one key.");
    return inputs;
}

}  // namespace

std::unique_ptr<Dataset> tensors(Options& options) {
    const auto common = read_common(options);
    const auto paths = read_paths(options, common);
    if (paths.size() != 1) throw options.error("path", "must be one file", "");
    const auto file = read_file(paths[0]);
    const auto tensors = unpickle(file);
    auto dataset = std::make_unique<TensorFile>();

    // The same preparation for all inputs, where they have none of their own.
    const auto dtype =
        options.choice("dtype", "auto", {"auto", "bool", "float32", "float64", "int64"}, "of all inputs");
    const double scale = options.number("scale", 1, "inputs are multiplied by this");
    const double divide = options.number("divide", 1, "inputs are divided by this");
    const int64_t unsqueeze = options.integer("unsqueeze", 0, 0, 8, "where inputs get a dimension of 1; 0: nowhere");
    dataset->pairs =
        options.boolean("pairs", false, "inputs are [N, 2, ...]: pairs, flattened to 2N rows, one target each");

    Json resolved_inputs = Json::array();
    for (auto& [key, setting] : read_inputs(options)) {
        Prepared input;
        input.stored = find(tensors, key, "inputs", file, options);
        Options own(options.owner() + ".inputs." + key, setting);
        input.mask = own.boolean("mask", false, "1 where the value is above 0, else 0");
        input.dtype = read_dtype(own, input.mask && dtype == "auto" ? "int64" : dtype, input.stored.scalar_type());
        input.scale = own.number("scale", input.mask ? 1 : scale, "multiply by this");
        input.divide = own.number("divide", input.mask ? 1 : divide, "divide by this");
        input.unsqueeze = own.integer("unsqueeze", unsqueeze, 0, 8, "where to insert a dimension of 1; 0: nowhere");
        const auto mean = own.numbers("mean", {}, "subtracted after scaling, per index of dimension 1 or one for all");
        const auto std = own.numbers("std", {}, "what is left is divided by this");
        own.done();
        if (input.divide == 0) throw own.error("divide", "must not be 0", "");
        const bool integral = input.dtype != at::kFloat && input.dtype != at::kDouble;
        if (integral && (input.scale != 1 || input.divide != 1 || !mean.empty() || !std.empty()))
            throw own.error("dtype", "is an integer type, which cannot be scaled", "Use dtype: float32.");
        if (input.unsqueeze > input.stored.dim() - (dataset->pairs ? 1 : 0))
            throw own.error(
                "unsqueeze",
                "is " + std::to_string(input.unsqueeze) + ", the tensor is " + text_of(input.stored.sizes()), "");
        const auto per_channel = [&](const std::vector<double>& values, const char* name) -> at::Tensor {
            if (values.empty()) return {};
            const auto rank = input.stored.dim() - (dataset->pairs ? 1 : 0);
            const auto channels = rank > 1 ? input.stored.size(dataset->pairs ? 2 : 1) : 1;
            if (values.size() != 1 && static_cast<int64_t>(values.size()) != channels)
                throw own.error(name, "must be one number or " + std::to_string(channels), "");
            std::vector<int64_t> shape(static_cast<size_t>(rank), 1);
            if (values.size() > 1) shape[1] = channels;
            return at::tensor(values, at::kDouble).to(input.dtype).reshape(shape);
        };
        input.mean = per_channel(mean, "mean");
        input.std = per_channel(std, "std");
        resolved_inputs.push_back({{key, own.resolved()}});
        dataset->inputs.push_back(std::move(input));
    }
    options.resolve("inputs", resolved_inputs);
    const auto mask_of = options.text("mask", "", "key whose mask (1 where above 0) is the last argument of forward");
    if (!mask_of.empty()) {
        Prepared mask;
        mask.stored = find(tensors, mask_of, "mask", file, options);
        mask.mask = true;
        mask.dtype = at::kLong;
        dataset->inputs.push_back(std::move(mask));
    }

    const auto target = options.text("target", "label", "key of the targets; none: unlabelled");
    const int64_t classes =
        options.integer("classes", 0, 0, INT64_MAX, "targets must be 0 to classes - 1; 0: not checked");
    if (target != "none") {
        dataset->target = find(tensors, target, "target", file, options);
        dataset->target =
            dataset->target.to(at::isFloatingType(dataset->target.scalar_type()) ? at::kFloat : at::kLong);
        if (classes > 0) {
            const auto wrong = ((dataset->target < 0) | (dataset->target >= classes)).reshape({-1}).nonzero();
            if (wrong.numel() > 0) {
                const auto i = wrong[0].item<int64_t>();
                throw IoError(file.path,
                              target + " " + std::to_string(dataset->target.reshape({-1})[i].item<int64_t>()) +
                                  " of example " + std::to_string(i) + " is out of the range 0 to " +
                                  std::to_string(classes - 1),
                              "Set classes to the number of classes.");
            }
        }
    }

    const auto name = common.name.empty() ? "tensors " + file.path.substr(file.path.rfind('/') + 1) : common.name;
    const auto rows_key = options.text("output_rows", "",
                                       "key of a list of rows: the file is one example (a graph, say), "
                                       "targets are compared to these rows of the output");
    if (!rows_key.empty()) {
        if (dataset->pairs) throw options.error("output_rows", "cannot be used with pairs", "");
        if (options.has("rows"))
            throw options.error("rows", "cannot be used with output_rows: there is one example", "");
        dataset->output_rows = find(tensors, rows_key, "output_rows", file, options).to(at::kLong);
        const auto& rows = dataset->output_rows;
        if (rows.dim() != 1 || rows.numel() == 0)
            throw options.error("output_rows", "must name a list of rows, is " + text_of(rows.sizes()), "");
        if (dataset->target.defined()) {
            if (rows.min().item<int64_t>() < 0 || rows.max().item<int64_t>() >= dataset->target.size(0))
                throw IoError(file.path,
                              rows_key + " names rows outside of " + target + " " + text_of(dataset->target.sizes()),
                              "");
            dataset->target = dataset->target.index_select(0, rows);
        }
        dataset->count = 1;
        dataset->text = name + ", one example with " + std::to_string(rows.numel()) + " labelled rows";
        dataset->hash = fingerprint_of("tensors", {file.sha256}, options);
        return dataset;
    }

    const auto& first = dataset->inputs.front().stored;
    if (first.dim() == 0 || first.size(0) == 0) throw IoError(file.path, "its first input holds no example", "");
    const auto check_count = [&](const at::Tensor& tensor, const std::string& what) {
        if (tensor.dim() == 0 || tensor.size(0) != first.size(0))
            throw IoError(file.path,
                          what + " is " + text_of(tensor.sizes()) + ", the first input " + text_of(first.sizes()) +
                              ": numbers of examples differ",
                          "All must share the first dimension; for one graph in a file, set output_rows.");
    };
    for (size_t i = 0; i < dataset->inputs.size(); ++i) {
        check_count(dataset->inputs[i].stored, "input " + std::to_string(i));
        if (dataset->pairs && (dataset->inputs[i].stored.dim() < 2 || dataset->inputs[i].stored.size(1) != 2))
            throw options.error("pairs",
                                "needs inputs of shape [N, 2, ...], input " + std::to_string(i) + " is " +
                                    text_of(dataset->inputs[i].stored.sizes()),
                                "");
    }
    if (dataset->target.defined()) check_count(dataset->target, target);
    const auto [from, to] = read_rows(options, first.size(0), "examples [from, to) of the file");
    for (auto& input : dataset->inputs) input.stored = input.stored.slice(0, from, to);
    if (dataset->target.defined()) dataset->target = dataset->target.slice(0, from, to);
    dataset->count = to - from;
    dataset->text = name + ", " + std::to_string(to - from) + (dataset->pairs ? " pairs" : " examples");
    dataset->hash = fingerprint_of("tensors", {file.sha256}, options);
    return dataset;
}

}  // namespace coppice::formats
