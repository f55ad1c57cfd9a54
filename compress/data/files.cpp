// Reading files, and the options that all formats share.
#include <zlib.h>

#include <coppice/error.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "data/formats.h"

namespace coppice::formats {
namespace fs = std::filesystem;

namespace {

std::string gunzip(const std::string& path, const std::string& packed) {
    z_stream stream{};
    if (inflateInit2(&stream, 15 + 16) != Z_OK) throw InternalError(path, "zlib cannot start", "");  // 16: gzip header
    std::string bytes;
    std::vector<char> chunk(1 << 20);
    // zlib counts in unsigned int, so files of 4 GB and more are fed in pieces.
    size_t fed = 0;
    int status = Z_OK;
    while (status != Z_STREAM_END) {
        if (stream.avail_in == 0 && fed < packed.size()) {
            const size_t piece = std::min<size_t>(packed.size() - fed, 1u << 30);
            stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data() + fed));
            stream.avail_in = static_cast<uInt>(piece);
            fed += piece;
        }
        stream.next_out = reinterpret_cast<Bytef*>(chunk.data());
        stream.avail_out = static_cast<uInt>(chunk.size());
        status = inflate(&stream, Z_NO_FLUSH);
        if (status != Z_OK && status != Z_STREAM_END) break;
        bytes.append(chunk.data(), chunk.size() - stream.avail_out);
    }
    inflateEnd(&stream);
    if (status == Z_BUF_ERROR) throw IoError(path, "the gzip file ends too early", "Fetch or copy it again.");
    if (status != Z_STREAM_END) throw IoError(path, "the gzip file is damaged", "Fetch or copy it again.");
    return bytes;
}

}  // namespace

Common read_common(Options& options) {
    Common common;
    common.base = options.text("base", "", "folder that relative paths are relative to; the recipe's by default");
    common.name = options.text("name", "", "what the data is called in logs and reports");
    common.split =
        options.choice("split", "train", {"train", "test"}, "which of the standard files, where path is a folder");
    return common;
}

std::string absolute_path(const Common& common, const std::string& path) {
    return fs::absolute(fs::path(common.base) / path).lexically_normal().string();
}

std::vector<std::string> read_paths(Options& options, const Common& common) {
    auto paths = options.texts("path", {}, "file or files to read");
    if (paths.empty()) throw options.error("path", "is missing", "Say which file to read, as path: FILE.");
    for (auto& path : paths) path = absolute_path(common, path);
    options.resolve("path", paths.size() == 1 ? Json(paths.front()) : Json(paths));
    return paths;
}

std::pair<int64_t, int64_t> read_rows(Options& options, int64_t size, const std::string& help) {
    const auto rows = options.integers("rows", {}, help);
    if (rows.empty()) {
        options.resolve("rows", Json::array({0, size}));
        return {0, size};
    }
    if (rows.size() != 2) throw options.error("rows", "must be two numbers", "Write rows: [from, to]; to is excluded.");
    if (rows[0] < 0 || rows[0] >= rows[1] || rows[1] > size)
        throw options.error("rows", "is [" + std::to_string(rows[0]) + ", " + std::to_string(rows[1]) + "]",
                            "The file has rows 0 to " + std::to_string(size) + "; to is excluded.");
    return {rows[0], rows[1]};
}

std::string find_in_folder(const std::string& folder, const std::vector<std::string>& names) {
    std::string tried;
    for (const auto& name : names) {
        for (const char* ending : {"", ".gz"})
            if (const auto path = fs::path(folder) / (name + ending); fs::is_regular_file(path)) return path.string();
        tried += (tried.empty() ? "" : ", ") + name;
    }
    throw IoError(folder, "the folder holds none of " + tried, "Name the files themselves as path.");
}

File read_file(const std::string& path) {
    std::error_code error;
    if (fs::is_directory(path, error)) throw IoError(path, "is a folder", "Name the file in it.");
    if (!fs::exists(path, error))
        throw IoError(path, "there is no such file", "Check the path and the folder it starts from.");
    std::ifstream stream(path, std::ios::binary);
    if (!stream)
        throw IoError(path, std::string("cannot be opened: ") + std::strerror(errno), "Check its permissions.");
    File file;
    file.path = path;
    file.bytes.resize(static_cast<size_t>(fs::file_size(path)));
    stream.read(file.bytes.data(), static_cast<std::streamsize>(file.bytes.size()));
    if (static_cast<size_t>(stream.gcount()) != file.bytes.size())
        throw IoError(path, "cannot be read to its end", "Check the disk, or copy the file again.");
    file.sha256 = sha256_of(file.bytes);
    if (file.bytes.size() >= 2 && file.bytes[0] == '\x1f' && file.bytes[1] == '\x8b')
        file.bytes = gunzip(path, file.bytes);
    return file;
}

std::string fingerprint_of(const std::string& format, const std::vector<std::string>& file_hashes,
                           const Options& options) {
    std::string text = format;
    for (const auto& hash : file_hashes) text += "\n" + hash;
    Json how = options.resolved();
    for (const char* place : {"base", "name", "split", "path", "labels"}) how.erase(place);
    return sha256_of(text + "\n" + how.dump());
}

void check_indices(const std::vector<int64_t>& indices, int64_t size, const std::string& description) {
    for (const int64_t index : indices)
        if (index < 0 || index >= size)
            throw InvalidArgument(description, "example " + std::to_string(index) + " was asked for",
                                  "Examples are 0 to " + std::to_string(size - 1) + ".");
}

std::vector<int64_t> shuffled(int64_t size, uint64_t seed, uint64_t stream) {
    std::vector<int64_t> order(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) order[i] = i;
    // The seed goes through the generator once, so that (seed 0, stream 1) and (seed 1, stream 0) are unrelated.
    SplitMix random(SplitMix(seed).next() + stream * 0xd1342543de82ef95);
    for (int64_t i = size - 1; i > 0; --i)
        std::swap(order[i], order[static_cast<int64_t>(random.below(static_cast<uint64_t>(i) + 1))]);
    return order;
}

}  // namespace coppice::formats
