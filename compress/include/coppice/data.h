/// Labelled data: the Dataset interface, the built-in formats, batches and calibration subsets.
#pragma once

#include <torch/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <coppice/model.h>
#include <coppice/registry.h>

namespace coppice {

/// One batch as `forward` takes it, with what the outputs are compared to.
struct Batch {
    Inputs inputs;      ///< arguments of forward, batch first
    at::Tensor target;  ///< class indices int64 [N], class probabilities [N, C], or values like the output
    at::Tensor rows;    ///< int64: the rows of the output that `target` speaks of; undefined: all, in order
    /// Targets are similarity scores [N] of pairs: the output has 2N rows, row 2i and 2i+1 are compared. Set by the
    /// data.
    bool pairs = false;
    int64_t examples() const { return target.defined() ? target.size(0) : 0; }
};

/// Random access to examples. Implementations are read-only after construction, so that threads may share them.
class Dataset {
public:
    virtual ~Dataset() = default;
    virtual int64_t size() const = 0;
    /// The examples at `indices`, prepared as the model wants them. @throws InvalidArgument when an index is out of
    /// range
    virtual Batch batch(const std::vector<int64_t>& indices) const = 0;
    /// "CIFAR-10 binary, 10000 images": for logs and reports.
    virtual std::string description() const = 0;
    /// SHA-256 (hex) of the files and of how they are read: the data's entry in the manifest.
    virtual std::string fingerprint() const = 0;
};

/// The parts of a recipe's `data:`; any may be null.
struct DataSplits {
    std::shared_ptr<const Dataset> train;
    std::shared_ptr<const Dataset>
        validation;  ///< steers: gate, search, early stopping; null: test is used and said so
    std::shared_ptr<const Dataset> test;
    std::shared_ptr<const Dataset> calibration;  ///< unlabelled use: observers, taylor scores; from train by default
};

/// Formats of `data:`, one row each: cifar10, csv, idx, tensors. Each opens ONE split from its options.
const std::vector<Entry<Dataset>>& dataset_formats();

/// Opens `data:` of a recipe: {format, train, validation, test, calibration (a count or a split), ...shared options}.
/// Options beside the splits apply to all of them; a split given as text is the format's `path`. Relative paths are
/// resolved against `base`.
/// @throws InvalidArgument, IoError before anything is computed
DataSplits open_data(const Setting& data, const std::string& base, Json* resolved = nullptr);

/// Tensors in memory: inputs[i] and target share their first dimension.
std::shared_ptr<Dataset> tensor_dataset(std::vector<at::Tensor> inputs, at::Tensor target,
                                        const std::string& description);

/// The examples `indices` of `base`.
std::shared_ptr<Dataset> subset(std::shared_ptr<const Dataset> base, std::vector<int64_t> indices);

/// `count` examples drawn without replacement by `seed` (all when there are fewer).
std::shared_ptr<Dataset> calibration_subset(std::shared_ptr<const Dataset> base, int64_t count, uint64_t seed);

/// Batches of a dataset in a seeded order; the same seed and epoch give the same order on every machine.
class BatchIterator {
public:
    BatchIterator(const Dataset& dataset, int64_t batch_size, bool shuffle = false, uint64_t seed = 0,
                  int64_t epoch = 0, bool drop_last = false);
    std::optional<Batch> next();
    int64_t batches() const;

private:
    const Dataset& dataset_;
    int64_t batch_size_, next_ = 0;
    bool drop_last_;
    std::vector<int64_t> order_;
};

/// Pads by `padding` pixels of zero and cuts back at a random place, one place per image. images [N, C, H, W]
at::Tensor random_crop(const at::Tensor& images, int64_t padding, at::Generator generator);
/// Mirrors each image left to right with probability 1/2. images [N, C, H, W]
at::Tensor random_flip(const at::Tensor& images, at::Generator generator);

/// SHA-256 of a file, lower-case hex. @throws IoError
std::string sha256_of_file(const std::string& path);
std::string sha256_of(const std::string& bytes);

}  // namespace coppice
