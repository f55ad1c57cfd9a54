#include "train/checkpoint.h"

#include <coppice/error.h>
#include <coppice/pipeline.h>
#include <torch/serialize.h>

#include <cstring>

namespace coppice {
namespace {

constexpr const char* kAbout = "about";  // JSON as bytes; tensor names have a dot, so none is called this
constexpr const char* kFormat = "coppice-checkpoint 2";

Json to_json(const EpochInfo& info) {
    return {{"epoch", info.epoch},
            {"train_loss", info.train_loss},
            {"lr", info.lr},
            {"seconds", info.seconds},
            {"metric", info.metric ? Json(*info.metric) : Json()},
            {"evaluate_seconds", info.evaluate_seconds},
            {"energy_j", info.energy_j ? Json(*info.energy_j) : Json()},
            {"carbon_g", info.carbon_g ? Json(*info.carbon_g) : Json()},
            {"provenance", info.provenance}};
}

EpochInfo epoch_from(const Json& json) {
    EpochInfo info{};
    info.epoch = json.at("epoch"), info.train_loss = json.at("train_loss");
    info.lr = json.at("lr"), info.seconds = json.at("seconds"), info.evaluate_seconds = json.at("evaluate_seconds");
    const auto number = [&](const char* name) {
        return json.at(name).is_null() ? std::nullopt : std::optional<double>(json.at(name).get<double>());
    };
    info.metric = number("metric"), info.energy_j = number("energy_j"), info.carbon_g = number("carbon_g");
    info.provenance = json.at("provenance");
    return info;
}

}  // namespace

void write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint, const NamedTensors& tensors) {
    Json about = {{"format", kFormat},
                  {"options", checkpoint.options},
                  {"data", checkpoint.data},
                  {"stopped", checkpoint.stopped},
                  {"stopped_by", checkpoint.stopped_by},
                  {"epochs", Json::array()}};
    for (const auto& info : checkpoint.epochs) about["epochs"].push_back(to_json(info));
    const auto text = about.dump();
    c10::Dict<std::string, at::Tensor> dict;
    auto bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
    std::memcpy(bytes.data_ptr(), text.data(), text.size());
    dict.insert(kAbout, bytes);
    for (const auto& [name, tensor] : tensors) dict.insert(name, tensor.detach());
    const auto pickled = torch::pickle_save(dict);
    write_atomically(path, std::string(pickled.begin(), pickled.end()));
}

Checkpoint read_checkpoint(const std::filesystem::path& path, const Json& options, const std::string& data,
                           const NamedTensors& tensors) {
    const std::string fix = "Delete it to start from the beginning.";
    std::map<std::string, at::Tensor> stored;
    Json about;
    Checkpoint checkpoint;
    try {
        const auto bytes = read_text(path);
        for (const auto& item : torch::pickle_load({bytes.begin(), bytes.end()}).toGenericDict())
            stored[item.key().toStringRef()] = item.value().toTensor();
        const auto text = stored.at(kAbout).contiguous();
        about = Json::parse(std::string(static_cast<const char*>(text.const_data_ptr()), text.nbytes()));
        if (about.at("format") != kFormat) throw std::runtime_error("format " + about.at("format").dump());
        checkpoint.options = about.at("options");
        checkpoint.data = about.at("data");
        checkpoint.stopped = about.at("stopped");
        checkpoint.stopped_by = about.at("stopped_by");
        for (const auto& info : about.at("epochs")) checkpoint.epochs.push_back(epoch_from(info));
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        std::throw_with_nested(IoError(path.string(), "is no checkpoint of this program: " + message_of(error), fix));
    }
    for (const auto& [name, value] : options.items())
        if (!checkpoint.options.contains(name) || checkpoint.options[name] != value)
            throw InvalidArgument(
                path.string(),
                "the checkpoint was written with " + name + " " +
                    (checkpoint.options.contains(name) ? checkpoint.options[name].dump() : "unknown") + ", now it is " +
                    value.dump(),
                fix);
    if (checkpoint.data != data)
        throw InvalidArgument(path.string(), "the checkpoint was written while training on other data", fix);
    for (const auto& [name, tensor] : tensors) {
        const auto found = stored.find(name);
        if (found == stored.end() || found->second.sizes() != tensor.sizes() ||
            found->second.scalar_type() != tensor.scalar_type())
            throw InvalidArgument(path.string(),
                                  "the checkpoint is of another model: " + name +
                                      (found == stored.end() ? " is not in it" : " has another shape or type"),
                                  fix);
    }
    if (stored.size() != tensors.size() + 1)
        throw InvalidArgument(path.string(), "the checkpoint is of another model: it holds more tensors", fix);
    torch::NoGradGuard no_grad;
    for (const auto& [name, tensor] : tensors) tensor.detach().copy_(stored[name]);
    return checkpoint;
}

}  // namespace coppice
