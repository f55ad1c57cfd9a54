/// Private to data/: what the formats share.
#pragma once

#include <coppice/data.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace coppice::formats {

// One factory per format; the rows of dataset_formats() are in registry.cpp.
std::unique_ptr<Dataset> cifar10(Options& options);
std::unique_ptr<Dataset> csv(Options& options);
std::unique_ptr<Dataset> idx(Options& options);
std::unique_ptr<Dataset> tensors(Options& options);

/// Options of every format.
struct Common {
    std::string base;   ///< folder that relative paths are relative to
    std::string name;   ///< replaces the format's name in description()
    std::string split;  ///< "train" or "test": which of the standard files, where `path` is a folder
};
Common read_common(Options& options);

/// Option `path`, one or several, made absolute. @throws InvalidArgument when it is absent
std::vector<std::string> read_paths(Options& options, const Common& common);
/// `path` below the base folder, absolute.
std::string absolute_path(const Common& common, const std::string& path);

/// Option `rows: [from, to]` as a range of `size` examples; all of them when it is absent.
std::pair<int64_t, int64_t> read_rows(Options& options, int64_t size, const std::string& help);

/// The first of `names` that is a file in `folder`, or in it with ".gz". @throws IoError naming what was looked for
std::string find_in_folder(const std::string& folder, const std::vector<std::string>& names);

/// A file's bytes, and their SHA-256 as they lie on disk.
struct File {
    std::string path, bytes, sha256;
};
/// Reads a whole file and unpacks it when it is gzip. @throws IoError: absent, a folder, unreadable, truncated gzip
File read_file(const std::string& path);

/// Fingerprint of files and of every option but those that only say where they lie.
std::string fingerprint_of(const std::string& format, const std::vector<std::string>& file_hashes,
                           const Options& options);

/// @throws InvalidArgument when an index is outside of [0, size)
void check_indices(const std::vector<int64_t>& indices, int64_t size, const std::string& description);

/// (value / divide - mean) / std of each channel as a table over the 256 byte values, in float32 and in this order, as
/// torchvision's ToTensor and Normalize compute it. @return channels x 256
std::vector<float> byte_table(double divide, const std::vector<double>& mean, const std::vector<double>& std,
                              int64_t channels);

/// Labelled images of bytes, kept as bytes and prepared batch by batch through a table per channel.
class ByteImages final : public Dataset {
public:
    /// @param shape   of one example, channels first: {C, H, W}, or {D} for vectors (one table)
    /// @param pixels  N x product(shape)
    /// @param labels  N, or empty: unlabelled
    /// @param table   channels x 256
    ByteImages(std::vector<int64_t> shape, std::vector<uint8_t> pixels, std::vector<int64_t> labels,
               std::vector<float> table, std::string description, std::string fingerprint);

    int64_t size() const override { return size_; }
    Batch batch(const std::vector<int64_t>& indices) const override;
    std::string description() const override { return description_; }
    std::string fingerprint() const override { return fingerprint_; }

private:
    const std::vector<int64_t> shape_;
    const std::vector<uint8_t> pixels_;
    const std::vector<int64_t> labels_;
    const std::vector<float> table_;
    const std::string description_, fingerprint_;
    int64_t size_, example_size_, channels_;
};

/// A generator that is the same on every machine, unlike std::shuffle and the standard distributions:
/// splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
class SplitMix {
public:
    explicit SplitMix(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = (state_ += 0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    /// Uniform in [0, bound): numbers above the largest multiple of bound are drawn again.
    uint64_t below(uint64_t bound) {
        const uint64_t limit = UINT64_MAX - UINT64_MAX % bound;
        uint64_t value = next();
        while (value >= limit) value = next();
        return value % bound;
    }

private:
    uint64_t state_;
};

/// 0 .. size-1 in an order given by `seed` and `stream` (Fisher-Yates).
std::vector<int64_t> shuffled(int64_t size, uint64_t seed, uint64_t stream);

}  // namespace coppice::formats
