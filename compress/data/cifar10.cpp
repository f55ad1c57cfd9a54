// CIFAR-10, binary version (Krizhevsky 2009): records of one label byte and 3 x 32 x 32 bytes, red plane first.
#include <coppice/error.h>

#include <filesystem>

#include "data/formats.h"

namespace coppice::formats {
namespace {

constexpr int64_t kPixels = 3 * 32 * 32, kRecord = 1 + kPixels, kClasses = 10;

std::vector<std::string> standard_files(const std::string& folder, const std::string& split) {
    if (split == "test") return {find_in_folder(folder, {"test_batch.bin", "test.bin"})};
    if (!std::filesystem::exists(std::filesystem::path(folder) / "data_batch_1.bin"))
        return {find_in_folder(folder, {"train.bin", "data_batch_1.bin"})};
    std::vector<std::string> files;
    for (int i = 1; i <= 5; ++i) files.push_back(find_in_folder(folder, {"data_batch_" + std::to_string(i) + ".bin"}));
    return files;
}

}  // namespace

std::unique_ptr<Dataset> cifar10(Options& options) {
    const auto common = read_common(options);
    auto paths = read_paths(options, common);
    if (paths.size() == 1 && std::filesystem::is_directory(paths[0])) paths = standard_files(paths[0], common.split);
    // Of ImageNet, and what the widely used CIFAR-10 ResNets (akamaster/pytorch_resnet_cifar10) were trained with.
    const auto mean = options.numbers("mean", {0.485, 0.456, 0.406}, "subtracted from pixel / 255, per channel");
    const auto std = options.numbers("std", {0.229, 0.224, 0.225}, "what is left is divided by this, per channel");
    if (mean.size() != 3 && mean.size() != 1) throw options.error("mean", "must be three numbers or one", "");
    if (std.size() != 3 && std.size() != 1) throw options.error("std", "must be three numbers or one", "");
    for (const double value : std)
        if (!(value > 0)) throw options.error("std", "must be above 0", "");

    std::vector<uint8_t> pixels;
    std::vector<int64_t> labels;
    std::vector<std::string> hashes;
    for (const auto& path : paths) {
        const auto file = read_file(path);
        const auto bytes = static_cast<int64_t>(file.bytes.size());
        if (bytes == 0 || bytes % kRecord != 0)
            throw IoError(path,
                          "has " + std::to_string(bytes) + " bytes, no multiple of the " + std::to_string(kRecord) +
                              " of a CIFAR-10 record",
                          "The file is truncated or of another format.");
        const auto* record = reinterpret_cast<const uint8_t*>(file.bytes.data());
        pixels.reserve(pixels.size() + static_cast<size_t>(bytes / kRecord * kPixels));
        for (int64_t i = 0; i < bytes / kRecord; ++i, record += kRecord) {
            if (record[0] >= kClasses)
                throw IoError(path,
                              "record " + std::to_string(i) + " has label " + std::to_string(record[0]) +
                                  ", out of the range 0 to 9",
                              "The file is not CIFAR-10 in its binary version.");
            labels.push_back(record[0]);
            pixels.insert(pixels.end(), record + 1, record + kRecord);
        }
        hashes.push_back(file.sha256);
    }
    const auto [from, to] = read_rows(options, static_cast<int64_t>(labels.size()), "images [from, to) of the files");
    labels = {labels.begin() + from, labels.begin() + to};
    if (from > 0 || to * kPixels < static_cast<int64_t>(pixels.size()))
        pixels = {pixels.begin() + from * kPixels, pixels.begin() + to * kPixels};
    const auto name = common.name.empty() ? "CIFAR-10 binary" : common.name;
    const auto description = name + ", " + std::to_string(labels.size()) + " images";
    return std::make_unique<ByteImages>(std::vector<int64_t>{3, 32, 32}, std::move(pixels), std::move(labels),
                                        byte_table(255, mean, std, 3), description,
                                        fingerprint_of("cifar10", hashes, options));
}

}  // namespace coppice::formats
