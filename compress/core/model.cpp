#include <coppice/model.h>

#include <caffe2/serialize/inline_container.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <fcntl.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>

#include "graph/canonical.h"

#include <coppice/error.h>
#include <coppice/graph.h>

namespace coppice {
namespace {

class MemoryReader final : public caffe2::serialize::ReadAdapterInterface {
public:
    explicit MemoryReader(std::string bytes) : bytes_(std::move(bytes)) {}
    size_t size() const override { return bytes_.size(); }
    size_t read(uint64_t position, void* buffer, size_t count, const char*) const override {
        if (position >= bytes_.size()) return 0;
        count = std::min(count, bytes_.size() - static_cast<size_t>(position));
        std::memcpy(buffer, bytes_.data() + position, count);
        return count;
    }

private:
    std::string bytes_;
};

bool starts_with(const std::string& text, const char* head) {
    return text.rfind(head, 0) == 0;
}

/// Throws when LibTorch's complaint is about the version of the archive.
void refuse_newer(const std::string& where, const std::string& message) {
    if (message.find("with version") == std::string::npos &&
        message.find("maximum supported version") == std::string::npos)
        return;
    throw IoError(
        where, "the file was written by a newer LibTorch (" + message + ")",
        "Save it again with the LibTorch that Coppice was built with, or build Coppice against the newer one.");
}

/// Says what a file that LibTorch cannot load is instead. `loader_message` is LibTorch's own complaint.
[[noreturn]] void explain_unreadable(const std::string& where, const std::string& loader_message) {
    std::ifstream file(where, std::ios::binary | std::ios::ate);
    const auto size = static_cast<int64_t>(file.tellg());
    std::string head(static_cast<size_t>(std::min<int64_t>(size, 16)), '\0');
    file.seekg(0);
    file.read(head.data(), static_cast<std::streamsize>(head.size()));
    const std::string save =
        "Save the model with torch.jit.script(model).save(path) or torch.jit.trace(model, example).save(path).";
    if (size == 0) throw IoError(where, "the file is empty", save);
    if (starts_with(head, "\x80\x02") || starts_with(head, "\x80\x03") || starts_with(head, "\x80\x04"))
        throw IoError(
            where, "this is a pickle (a state_dict or a model of torch.save in the old format), not TorchScript", save);
    if (starts_with(head, "\x89HDF")) throw IoError(where, "this is an HDF5 file (Keras?), not TorchScript", save);
    if (!starts_with(head, "PK")) throw IoError(where, "this is not a TorchScript archive", save);
    std::vector<std::string> records;
    try {
        caffe2::serialize::PyTorchStreamReader reader(where);
        records = reader.getAllRecords();
    } catch (const std::exception& error) {
        const std::string message = message_of(error);
        refuse_newer(where, message);
        if (message.find("file not found") != std::string::npos || message.find("version") != std::string::npos)
            throw IoError(where, "this is a zip archive without PyTorch's records, not TorchScript", save);
        throw IoError(where, "the archive is truncated or damaged (" + message + ")", "Copy or save the file again.");
    }
    bool has_code = false, has_data = false, exported = false;
    for (const auto& record : records) {
        has_code |= starts_with(record, "code/") || record == "constants.pkl";
        has_data |= record == "data.pkl";
        exported |=
            record.find("serialized_exported_program") != std::string::npos || record == "archive_format" ||
            (starts_with(record, "models/") && record.size() > 5 && record.substr(record.size() - 5) == ".json");
    }
    if (exported) throw IoError(where, "this is an exported program (torch.export, .pt2), not TorchScript", save);
    if (has_data && !has_code)
        throw IoError(
            where, "this is a state_dict or a pickled model of torch.save, without code, not TorchScript",
            "Build the model in Python, load the state_dict into it, then torch.jit.script(model).save(path).");
    if (!has_code) throw IoError(where, "this is a zip archive without PyTorch's records, not TorchScript", save);
    for (const char* mark : {"Unknown builtin op: ", "Unknown custom class type ", "unknown type name '"}) {
        const auto at = loader_message.find(mark);
        if (at == std::string::npos) continue;
        const auto begin = at + std::strlen(mark);
        auto name = loader_message.substr(begin, loader_message.find_first_of(" '.,\n(", begin) - begin);
        throw UnsupportedModel(
            where, "the model needs \"" + name + "\", which LibTorch does not have",
            "It comes from a library of custom operators (torchvision, say). Export the model without "
            "that operator: keep only its backbone and do the rest outside.");
    }
    refuse_newer(where, loader_message);
    throw IoError(where, "LibTorch cannot load the archive (" + loader_message + ")",
                  "Load it in Python with torch.jit.load to see whether the file itself is sound.");
}

/// Packs the archive again with deflate entries and without debug records (they hold source paths and stack traces).
std::string repack(std::string bytes) {
    caffe2::serialize::PyTorchStreamReader reader(std::make_unique<MemoryReader>(std::move(bytes)));
    std::string packed;
    caffe2::serialize::PyTorchStreamWriter writer([&](const void* data, size_t size) {
        packed.append(static_cast<const char*>(data), size);
        return size;
    });
    writer.setMinVersion(reader.version());
    for (const auto& record : reader.getAllRecords()) {
        if (record == "version" || record.find("serialization_id") != std::string::npos) continue;  // the writer's own
        if (record.size() > 10 && record.substr(record.size() - 10) == ".debug_pkl") continue;
        const auto [data, size] = reader.getRecord(record);
        writer.writeRecord(record, data.get(), size, /*compress=*/true);
    }
    writer.writeEndOfFile();
    return packed;
}

void collect_tensors(const c10::IValue& value, std::vector<at::Tensor>& tensors) {
    if (value.isTensor()) {
        if (value.toTensor().defined()) tensors.push_back(value.toTensor());
    } else if (value.isTuple()) {
        for (const auto& item : value.toTupleRef().elements()) collect_tensors(item, tensors);
    } else if (value.isList()) {
        for (const c10::IValue& item : value.toListRef()) collect_tensors(item, tensors);
    } else if (value.isGenericDict()) {
        for (const auto& item : value.toGenericDict()) collect_tensors(item.value(), tensors);
    } else if (value.isObject()) {
        for (const auto& item : value.toObject()->slots()) collect_tensors(item, tensors);
    }
}

}  // namespace

Model Model::load(const std::filesystem::path& path) {
    const std::string where = path.string();
    if (!std::filesystem::exists(path)) throw IoError(where, "there is no such file", "Check the path.");
    if (std::filesystem::is_directory(path)) throw IoError(where, "this is a folder", "Give the .pt file.");
    torch::jit::Module module;
    try {
        module = torch::jit::load(where, c10::kCPU);
    } catch (const std::exception& error) {
        explain_unreadable(where, message_of(error));
    }
    try {
        auto model = from_module(module, path.filename().string());
        model.eval();
        return model;
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        throw UnsupportedModel(where, "cannot be brought into canonical form (" + message_of(error) + ")",
                               "Please report the model's architecture.");
    }
}

Model Model::from_module(const torch::jit::Module& module, const std::string& name) {
    auto canonical = canonicalise(module, /*simplify=*/true);
    Model model;
    model.module_ = canonical.module;
    model.notes_ = canonical.notes;
    model.name_ = name;
    model.defined_ = true;
    for (const auto& method : model.module_.get_methods()) reinstall_method(model.module_, method.name());
    return model;
}

Model Model::clone() const {
    return clone_with({});
}

Model Model::clone_with(const std::unordered_map<std::string, at::Tensor>& tensors) const {
    Replacements replacements;
    for (const auto& [name, tensor] : tensors) {
        const auto old = get_attribute(*this, name);
        if (!old.isTensor()) throw InternalError("attribute " + name, "is no tensor", "");
        replacements[old.toTensor().unsafeGetTensorImpl()] = tensor.detach();
    }
    Model copy = *this;
    copy.module_ = canonicalise(module_, /*simplify=*/false, replacements).module;
    return copy;
}

void Model::save(const std::filesystem::path& path) const {
    static std::atomic<int> next{0};
    const auto temporary = path.string() + ".tmp" + std::to_string(::getpid()) + "." + std::to_string(next++);
    try {
        std::ostringstream stream;
        module_.save(stream);
        const std::string packed = repack(stream.str());
        const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (file < 0)
            throw IoError(path.string(), std::string("cannot write: ") + std::strerror(errno),
                          "Check the folder and its permissions.");
        size_t done = 0;
        while (done < packed.size()) {
            const auto count = ::write(file, packed.data() + done, packed.size() - done);
            if (count < 0 && errno == EINTR) continue;
            if (count < 0) {
                const std::string reason = std::strerror(errno);
                ::close(file);
                throw IoError(path.string(), "cannot write: " + reason, "Is the disk full?");
            }
            done += static_cast<size_t>(count);
        }
        ::fsync(file);
        ::close(file);
        std::filesystem::rename(temporary, path);
    } catch (const Error&) {
        std::error_code ignored;
        std::filesystem::remove(temporary, ignored);
        throw;
    } catch (const std::exception& error) {
        std::error_code ignored;
        std::filesystem::remove(temporary, ignored);
        throw IoError(path.string(), "cannot save the model (" + message_of(error) + ")", "");
    }
}

c10::IValue Model::forward(Inputs inputs) const {
    inputs.insert(inputs.begin(), module_._ivalue());
    return module_.get_method("forward").function()(std::move(inputs));
}

void Model::train(bool on) {
    for (auto module : module_.modules())
        if (const auto slot = module.type()->findAttributeSlot("training");
            slot && module.type()->getAttribute(*slot)->kind() == c10::TypeKind::BoolType)
            module._ivalue()->setSlot(*slot, on);
}

std::shared_ptr<torch::jit::Graph> Model::graph() const {
    return module_.get_method("forward").graph();
}

void Model::refresh() {
    auto edited = graph();
    torch::jit::EliminateDeadCode(edited);
    edited->lint();
    reinstall_method(module_, "forward");
}

std::vector<std::string> Model::other_methods() const {
    std::vector<std::string> names;
    for (const auto& method : module_.get_methods())
        if (method.name() != "forward") names.push_back(method.name());
    return names;
}

at::Tensor first_tensor(const c10::IValue& output) {
    const auto tensors = all_tensors(output);
    if (tensors.empty()) throw UnsupportedModel("output of forward", "holds no tensor (" + output.tagKind() + ")", "");
    return tensors.front();
}

std::vector<at::Tensor> all_tensors(const c10::IValue& output) {
    std::vector<at::Tensor> tensors;
    collect_tensors(output, tensors);
    return tensors;
}

}  // namespace coppice
