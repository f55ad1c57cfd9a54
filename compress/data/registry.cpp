#include "data/formats.h"

namespace coppice {

const std::vector<Entry<Dataset>>& dataset_formats() {
    static const std::vector<Entry<Dataset>> table = {
        {"cifar10", "CIFAR-10, binary version: one file, several, or the folder of them", formats::cifar10},
        {"csv", "windows over a time series in a CSV file: input_length rows in, horizon rows out", formats::csv},
        {"idx", "images and labels as in MNIST, Fashion-MNIST and EMNIST, plain or gzip", formats::idx},
        {"tensors", "a dict of tensors written by torch.save or torch::pickle_save", formats::tensors},
    };
    return table;
}

}  // namespace coppice
