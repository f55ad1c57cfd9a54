// IDX, the format of MNIST and its family: two zero bytes, a type code, the number of dimensions, big-endian extents,
// data.
#include <coppice/error.h>

#include <filesystem>

#include "data/formats.h"

namespace coppice::formats {
namespace {

struct Array {
    std::vector<int64_t> shape;
    const uint8_t* data;
};

Array parse(const File& file) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(file.bytes.data());
    const auto size = file.bytes.size();
    if (size < 4 || bytes[0] != 0 || bytes[1] != 0 || bytes[3] == 0)
        throw IoError(file.path, "does not begin with the magic number of an IDX file",
                      "Name an idx-ubyte file, plain or gzip.");
    if (bytes[2] != 0x08)
        throw IoError(file.path, "holds IDX type " + std::to_string(bytes[2]) + ", only unsigned bytes (8) can be read",
                      "Convert it, or use format tensors.");
    const size_t dims = bytes[3];
    if (size < 4 + 4 * dims) throw IoError(file.path, "is truncated within its header", "Fetch or copy it again.");
    Array array;
    uint64_t elements = 1;
    for (size_t d = 0; d < dims; ++d) {
        const uint8_t* b = bytes + 4 + 4 * d;
        const uint64_t extent = uint64_t{b[0]} << 24 | uint64_t{b[1]} << 16 | uint64_t{b[2]} << 8 | b[3];
        array.shape.push_back(static_cast<int64_t>(extent));
        // Past the file's size the product only needs to stay large: a damaged header must not overflow it.
        elements = elements > size ? elements : elements * extent;
    }
    array.data = bytes + 4 + 4 * dims;
    const uint64_t present = size - 4 - 4 * dims;
    if (elements != present)
        throw IoError(file.path,
                      (present < elements ? "is truncated: it has " : "is too long: it has ") +
                          std::to_string(present) + " bytes of data, its header says " + std::to_string(elements),
                      "Fetch or copy it again.");
    if (elements == 0) throw IoError(file.path, "is empty", "Name a file with examples.");
    return array;
}

/// train-images-idx3-ubyte.gz -> train-labels-idx1-ubyte.gz; empty when the name does not follow the custom.
std::string labels_path(const std::string& images_path) {
    const std::filesystem::path path(images_path);
    auto name = path.filename().string();
    const auto images = name.find("images"), idx = name.find("idx3");
    if (images == std::string::npos) return {};
    if (idx != std::string::npos) name.replace(idx, 4, "idx1");
    name.replace(images, 6, "labels");
    // Images may be packed and labels not, or the other way round.
    auto candidate = path.parent_path() / name;
    if (!std::filesystem::exists(candidate)) {
        auto other = candidate.extension() == ".gz" ? candidate.parent_path() / candidate.stem() : candidate;
        if (other == candidate) other += ".gz";
        if (std::filesystem::exists(other)) candidate = other;
    }
    return candidate.string();
}

}  // namespace

std::unique_ptr<Dataset> idx(Options& options) {
    const auto common = read_common(options);
    const auto paths = read_paths(options, common);
    if (paths.size() != 1) throw options.error("path", "must be one file of images", "");
    std::string path = paths[0];
    if (std::filesystem::is_directory(path)) {
        const std::string prefix = common.split == "train" ? "train" : "t10k";
        path = find_in_folder(path, {prefix + "-images-idx3-ubyte", prefix + "-images.idx3-ubyte"});
    }
    auto labels_file = options.text("labels", "", "file of labels; found by its name by default; none: unlabelled");
    const bool labelled = labels_file != "none";
    if (labelled) {
        labels_file = labels_file.empty() ? labels_path(path) : absolute_path(common, labels_file);
        if (labels_file.empty())
            throw options.error("labels", "cannot be derived from " + std::filesystem::path(path).filename().string(),
                                "Name the file of labels as labels: FILE, or write labels: none.");
        options.resolve("labels", labels_file);
    }
    const double divide = options.number("divide", 255, "pixels are divided by this");
    const auto mean = options.numbers("mean", {0}, "subtracted after that, per channel or one for all");
    const auto std = options.numbers("std", {1}, "what is left is divided by this, per channel or one for all");
    const int64_t classes = options.integer("classes", 10, 1, 256, "labels are 0 to classes - 1");
    if (!(divide > 0)) throw options.error("divide", "must be above 0", "");
    for (const double value : std)
        if (!(value > 0)) throw options.error("std", "must be above 0", "");

    const auto file = read_file(path);
    auto images = parse(file);
    if (images.shape.size() < 2 || images.shape.size() > 4)
        throw IoError(path, "has " + std::to_string(images.shape.size()) + " dimensions, images have 2 to 4",
                      images.shape.size() == 1 ? "This looks like a file of labels." : "");
    const int64_t count = images.shape[0];
    std::vector<int64_t> shape(images.shape.begin() + 1, images.shape.end());
    if (shape.size() == 2) shape.insert(shape.begin(), 1);  // grey: [1, H, W]
    const int64_t channels = shape.size() == 3 ? shape[0] : 1;
    for (const auto* values : {&mean, &std})
        if (values->size() != 1 && static_cast<int64_t>(values->size()) != channels)
            throw options.error(values == &mean ? "mean" : "std",
                                "must be one number or one for each of " + std::to_string(channels) + " channels", "");
    const auto [from, to] = read_rows(options, count, "images [from, to) of the file");

    std::vector<int64_t> labels;
    std::vector<std::string> hashes = {file.sha256};
    if (labelled) {
        const auto labels_bytes = read_file(labels_file);
        const auto array = parse(labels_bytes);
        if (array.shape.size() != 1)
            throw IoError(labels_file, "has " + std::to_string(array.shape.size()) + " dimensions, labels have one",
                          "This looks like a file of images.");
        if (array.shape[0] != count)
            throw IoError(
                labels_file,
                "holds " + std::to_string(array.shape[0]) + " labels for " + std::to_string(count) + " images",
                "Images and labels must be of the same set.");
        for (int64_t i = 0; i < count; ++i)
            if (array.data[i] >= classes)
                throw IoError(labels_file,
                              "label " + std::to_string(array.data[i]) + " of example " + std::to_string(i) +
                                  " is out of the range 0 to " + std::to_string(classes - 1),
                              "Set classes to the number of classes.");
        labels.assign(array.data + from, array.data + to);
        hashes.push_back(labels_bytes.sha256);
    }
    int64_t example = 1;
    for (const int64_t extent : shape) example *= extent;
    std::vector<uint8_t> pixels(images.data + from * example, images.data + to * example);
    const auto name = common.name.empty() ? "IDX " + std::filesystem::path(path).filename().string() : common.name;
    const auto description = name + ", " + std::to_string(to - from) + " images";
    return std::make_unique<ByteImages>(shape, std::move(pixels), std::move(labels),
                                        byte_table(divide, mean, std, channels), description,
                                        fingerprint_of("idx", hashes, options));
}

}  // namespace coppice::formats
