// The `data:` of a recipe: options beside the splits are shared, a split overrides them.
#include <coppice/error.h>

#include <charconv>
#include <filesystem>

#include "data/formats.h"

namespace coppice {
namespace {

const std::vector<std::string> kOwn = {"format", "train", "validation", "test", "calibration", "seed"};

std::optional<int64_t> whole_number(const Setting& setting) {
    int64_t value = 0;
    const auto& text = setting.text;
    if (setting.kind != Setting::Kind::kScalar || setting.quoted) return std::nullopt;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || stop != text.data() + text.size()) return std::nullopt;
    return value;
}

class Opener {
public:
    Opener(const Setting& data, const std::string& base) : data_(data), base_(base) {
        if (const auto* own = data.find("base"); own && own->kind == Setting::Kind::kScalar)
            base_ = (std::filesystem::path(base) / own->text).string();
        where_ = data.where.empty() ? "data" : data.where + ", data";
        if (data.kind != Setting::Kind::kMap)
            throw InvalidArgument(where_, "must be a map", "Write data: {format: idx, path: FOLDER}.");
        const auto* format = data.find("format");
        if (!format || format->kind != Setting::Kind::kScalar)
            throw InvalidArgument(where_, "names no format", "Known: " + known_formats() + ".");
        format_ = format->text;
        format_where_ = format->where.empty() ? where_ : format->where;
    }

    const std::string& format() const { return format_; }
    const std::string& where() const { return where_; }

    const Setting* given(const std::string& split) const {
        const auto* setting = data_.find(split);
        return setting && setting->kind != Setting::Kind::kNull ? setting : nullptr;
    }

    /// Is the shared path a folder, from which standard files can be taken?
    bool shared_folder() const {
        const auto* path = data_.find("path");
        return path && path->kind == Setting::Kind::kScalar && is_folder(path->text);
    }

    std::shared_ptr<const Dataset> open(const std::string& split, const Setting& setting, Json& resolved) const {
        std::vector<std::pair<std::string, Setting>> members;
        if (setting.kind == Setting::Kind::kMap)
            members = setting.members;
        else
            members.emplace_back("path", setting);
        const auto has = [&](const std::string& name) {
            return std::any_of(members.begin(), members.end(), [&](const auto& m) { return m.first == name; });
        };
        for (const auto& [name, value] : data_.members)
            if (std::find(kOwn.begin(), kOwn.end(), name) == kOwn.end() && name != "base" && !has(name))
                members.emplace_back(name, value);
        if (!has("base")) members.emplace_back("base", Setting::scalar(base_));
        std::string format = format_, format_where = format_where_;
        for (auto it = members.begin(); it != members.end(); ++it)
            if (it->first == "format") {
                format = it->second.text, format_where = it->second.where;
                members.erase(it);
                break;
            }
        const auto path = std::find_if(members.begin(), members.end(), [](const auto& m) { return m.first == "path"; });
        if (!has("split") && path != members.end() && path->second.kind == Setting::Kind::kScalar &&
            is_folder(path->second.text)) {
            if (split == "validation")
                throw InvalidArgument(
                    setting.where.empty() ? where_ : setting.where,
                    "validation names a folder, which has standard files for train and test only",
                    "Write validation: COUNT to hold out examples of train, or {split: train, rows: [from, to]}.");
            members.emplace_back("split", Setting::scalar(split == "test" ? "test" : "train"));
        }
        const auto& row = find_entry(dataset_formats(), "format", format, format_where);
        Options options("data." + split,
                        Setting::map(std::move(members), setting.where.empty() ? data_.where : setting.where));
        std::shared_ptr<const Dataset> dataset = row.make(options);
        // A mistyped "trian:" arrives here as a shared option: the names of the splits are among what it may have
        // meant.
        for (const auto& name : kOwn) options.remember({name, "", "", ""});
        options.done();
        resolved = options.resolved();
        resolved.erase("base");  // paths are absolute now
        if (format != format_) resolved["format"] = format;
        return dataset;
    }

private:
    static std::string known_formats() {
        std::string text;
        for (const auto& name : names_of(dataset_formats())) text += (text.empty() ? "" : ", ") + name;
        return text;
    }

    bool is_folder(const std::string& path) const {
        std::error_code ignored;
        return std::filesystem::is_directory(std::filesystem::path(base_) / path, ignored);
    }

    const Setting& data_;
    std::string base_, where_, format_, format_where_;
};

std::vector<int64_t> complement(const std::vector<int64_t>& sorted, int64_t size) {
    std::vector<int64_t> rest;
    size_t next = 0;
    for (int64_t i = 0; i < size; ++i) {
        if (next < sorted.size() && sorted[next] == i)
            ++next;
        else
            rest.push_back(i);
    }
    return rest;
}

}  // namespace

DataSplits open_data(const Setting& data, const std::string& base, Json* resolved) {
    const Opener opener(data, base);
    Json result = {{"format", opener.format()}};
    uint64_t seed = 0;
    if (const auto* setting = opener.given("seed")) {
        const auto value = whole_number(*setting);
        if (!value || *value < 0)
            throw InvalidArgument(opener.where(), "seed must be a whole number of at least 0", "");
        seed = static_cast<uint64_t>(*value);
    }

    DataSplits splits;
    const bool folder = opener.shared_folder();
    const Setting all = Setting::map({});
    const auto open = [&](const std::string& split, bool by_default) -> std::shared_ptr<const Dataset> {
        const auto* setting = opener.given(split);
        if (!setting && !(by_default && folder)) return nullptr;
        return opener.open(split, setting ? *setting : all, result[split]);
    };
    const auto* validation = opener.given("validation");
    const auto* calibration = opener.given("calibration");
    // With a folder, train and test are in it unless the recipe names splits itself.
    const bool named = opener.given("train") || opener.given("test") || (validation && !whole_number(*validation));
    splits.train = open("train", !named);
    splits.test = open("test", !named);
    if (validation) {
        if (const auto count = whole_number(*validation)) {
            if (!splits.train || *count < 1 || *count >= splits.train->size())
                throw InvalidArgument(
                    opener.where(),
                    "validation holds out " + validation->text + " examples of " +
                        (splits.train ? std::to_string(splits.train->size()) : "a train split that is not there"),
                    "Give a count below the size of train, or a split of its own.");
            // Drawn from a stream of its own, so that it is not the calibration subset of the whole.
            auto order = formats::shuffled(splits.train->size(), seed, UINT64_C(0x76616c6964617465));
            order.resize(static_cast<size_t>(*count));
            std::sort(order.begin(), order.end());
            const auto whole = splits.train;
            splits.train = subset(whole, complement(order, whole->size()));
            splits.validation = subset(whole, std::move(order));
            result["validation"] = *count;
        } else {
            splits.validation = open("validation", false);
        }
    }
    if (!splits.train && !splits.test && !splits.validation)
        throw InvalidArgument(opener.where(), "names no split",
                              "Give train: and test:, or a folder of standard files as path.");

    const auto count = calibration ? whole_number(*calibration) : std::optional<int64_t>(512);
    if (count) {
        if (calibration && *count < 1)
            throw InvalidArgument(opener.where(), "calibration is " + calibration->text,
                                  "Give a count of at least 1, or a split.");
        if (calibration && !splits.train)
            throw InvalidArgument(opener.where(),
                                  "calibration is a count of training examples, but there is no train split",
                                  "Add train:, or give calibration a file of its own.");
        if (splits.train) {
            splits.calibration = calibration_subset(splits.train, *count, seed);
            result["calibration"] = *count;
        }
    } else {
        splits.calibration = open("calibration", false);
    }
    result["seed"] = seed;
    if (resolved) *resolved = std::move(result);
    return splits;
}

}  // namespace coppice
