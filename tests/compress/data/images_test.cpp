#include <zlib.h>

#include "files.h"

namespace coppice::testing {
namespace {

std::string gzip(const std::string& bytes, const std::filesystem::path& path) {
    auto* file = gzopen(path.c_str(), "wb");
    gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
    gzclose(file);
    return path.string();
}

Setting text(const std::filesystem::path& path) {
    return Setting::scalar(path.string());
}

}  // namespace

TEST(Cifar10, NormalisesPixelsPerChannelAsFloat32) {
    const TemporaryFolder folder;
    write_file(folder / "a.bin", cifar_records(4));
    const auto data = open_format("cifar10", {{"path", text(folder / "a.bin")}});
    ASSERT_EQ(data->size(), 4);
    EXPECT_EQ(data->description(), "CIFAR-10 binary, 4 images");
    const auto batch = data->batch({3, 1});
    const auto images = batch.inputs.at(0).toTensor();
    ASSERT_EQ(images.sizes(), (std::vector<int64_t>{2, 3, 32, 32}));
    EXPECT_TRUE(at::equal(batch.target, at::tensor({3, 1}, at::kLong)));
    const float mean[] = {0.485f, 0.456f, 0.406f}, std[] = {0.229f, 0.224f, 0.225f};
    const int examples[] = {3, 1};
    for (int n = 0; n < 2; ++n)
        for (int p = 0; p < 3072; ++p) {
            const int pixel = (7 * examples[n] + 3 * p) % 256, c = p / 1024;
            ASSERT_EQ(images[n].reshape(-1)[p].item<float>(), (static_cast<float>(pixel) / 255.0f - mean[c]) / std[c]);
            if (p % 100 == 0) p += 50;  // element access is slow
        }
}

TEST(Cifar10, JoinsSeveralFilesAndCutsRows) {
    const TemporaryFolder folder;
    write_file(folder / "a.bin", cifar_records(3));
    write_file(folder / "b.bin", cifar_records(3, 3));
    const auto data =
        open_format("cifar10", {{"path", list({(folder / "a.bin").string(), (folder / "b.bin").string()})},
                                {"rows", list({"2", "5"})},
                                {"mean", list({"0"})},
                                {"std", list({"1"})}});
    const auto batch = data->batch({0, 1, 2});
    EXPECT_TRUE(at::equal(batch.target, at::tensor({2, 3, 4}, at::kLong)));
    EXPECT_EQ(batch.inputs[0].toTensor()[2][0][0][0].item<float>(), 28.0f / 255.0f);
}

TEST(Cifar10, SaysWhatIsWrongWithAFile) {
    const TemporaryFolder folder;
    EXPECT_ERROR(open_format("cifar10", {{"path", text(folder / "no.bin")}}), IoError, "there is no such file");
    EXPECT_ERROR(open_format("cifar10", {}), InvalidArgument, "path is missing");
    write_file(folder / "short.bin", cifar_records(2).substr(0, 5000));
    EXPECT_ERROR(open_format("cifar10", {{"path", text(folder / "short.bin")}}), IoError,
                 "has 5000 bytes, no multiple of the 3073");
    auto bytes = cifar_records(2);
    bytes[3073] = 10;
    write_file(folder / "label.bin", bytes);
    EXPECT_ERROR(open_format("cifar10", {{"path", text(folder / "label.bin")}}), IoError, "record 1 has label 10");
    write_file(folder / "good.bin", cifar_records(2));
    EXPECT_ERROR(open_format("cifar10", {{"path", text(folder / "good.bin")}, {"rows", list({"1", "3"})}}),
                 InvalidArgument, "rows is [1, 3]. The file has rows 0 to 2");
    EXPECT_ERROR(open_format("cifar10", {{"path", text(folder / "good.bin")}, {"std", list({"0"})}}), InvalidArgument,
                 "above 0");
    EXPECT_ERROR(open_format("cifar10", {{"path", text(folder / "good.bin")}, {"means", list({"0"})}}), InvalidArgument,
                 "mean");
    const auto data = open_format("cifar10", {{"path", text(folder / "good.bin")}});
    EXPECT_ERROR(data->batch({2}), InvalidArgument, "example 2 was asked for. Examples are 0 to 1");
}

TEST(Cifar10, TakesTheStandardFilesOfAFolder) {
    const TemporaryFolder folder;
    for (int i = 1; i <= 5; ++i)
        write_file(folder / ("data_batch_" + std::to_string(i) + ".bin"), cifar_records(2, 2 * i));
    write_file(folder / "test_batch.bin", cifar_records(1));
    EXPECT_EQ(open_format("cifar10", {{"path", text(folder.path())}})->size(), 10);
    EXPECT_EQ(open_format("cifar10", {{"path", text(folder.path())}, {"split", Setting::scalar("test")}})->size(), 1);
}

TEST(Fingerprint, ChangesWithTheBytesAndWithHowTheyAreReadButNotWithThePlace) {
    const TemporaryFolder folder;
    write_file(folder / "a.bin", cifar_records(4));
    write_file(folder / "b.bin", cifar_records(4));
    write_file(folder / "c.bin", cifar_records(4, 1));
    const auto of = [&](const char* name, std::vector<std::pair<std::string, Setting>> more = {}) {
        more.emplace_back("path", text(folder / name));
        return open_format("cifar10", more)->fingerprint();
    };
    EXPECT_EQ(of("a.bin").size(), 64u);
    EXPECT_EQ(of("a.bin"), of("b.bin"));
    EXPECT_NE(of("a.bin"), of("c.bin"));
    EXPECT_NE(of("a.bin"), of("a.bin", {{"mean", list({"0.5"})}}));
    EXPECT_NE(of("a.bin"), of("a.bin", {{"rows", list({"0", "2"})}}));
    EXPECT_EQ(of("a.bin"), of("a.bin", {{"name", Setting::scalar("other")}}));
}

TEST(Idx, ReadsPlainAndGzipAlikeAndFindsTheLabels) {
    const TemporaryFolder folder;
    const auto images = idx_bytes({2, 2, 3}, std::string("\x00\x01\x02\x03\x04\xff\x0a\x0b\x0c\x0d\x0e\x33", 12));
    const auto labels = idx_bytes({2}, std::string("\x07\x00", 2));
    write_file(folder / "x-images-idx3-ubyte", images);
    write_file(folder / "x-labels-idx1-ubyte", labels);
    gzip(images, folder / "y-images-idx3-ubyte.gz");
    gzip(labels, folder / "y-labels-idx1-ubyte.gz");
    for (const char* name : {"x-images-idx3-ubyte", "y-images-idx3-ubyte.gz"}) {
        const auto data = open_format("idx", {{"path", text(folder / name)}});
        ASSERT_EQ(data->size(), 2) << name;
        const auto batch = data->batch({0, 1});
        EXPECT_TRUE(at::equal(batch.target, at::tensor({7, 0}, at::kLong)));
        const auto expected = at::tensor({0., 1., 2., 3., 4., 255., 10., 11., 12., 13., 14., 51.}).to(at::kFloat) / 255;
        EXPECT_TRUE(at::equal(batch.inputs[0].toTensor(), expected.reshape({2, 1, 2, 3})))
            << batch.inputs[0].toTensor();
    }
}

TEST(Idx, TakesLabelsOfAnyNameNoneAndColourImages) {
    const TemporaryFolder folder;
    write_file(folder / "pictures", idx_bytes({1, 3, 1, 2}, std::string("\x00\x02\x04\x06\x08\x0a", 6)));
    write_file(folder / "classes", idx_bytes({1}, std::string("\x0b", 1)));
    const auto data = open_format("idx", {{"path", text(folder / "pictures")},
                                          {"labels", text(folder / "classes")},
                                          {"classes", Setting::scalar("12")},
                                          {"divide", Setting::scalar("2")},
                                          {"mean", list({"0", "1", "2"})},
                                          {"std", list({"1", "1", "2"})}});
    const auto batch = data->batch({0});
    EXPECT_TRUE(at::equal(batch.inputs[0].toTensor(),
                          at::tensor({0., 1., 1., 2., 1., 1.5}).to(at::kFloat).reshape({1, 3, 1, 2})));
    EXPECT_EQ(batch.target.item<int64_t>(), 11);
    const auto unlabelled =
        open_format("idx", {{"path", text(folder / "pictures")}, {"labels", Setting::scalar("none")}});
    EXPECT_FALSE(unlabelled->batch({0}).target.defined());
}

TEST(Idx, SaysWhatIsWrongWithAFile) {
    const TemporaryFolder folder;
    const auto open = [&](const std::string& images, const std::string& labels) {
        write_file(folder / "i", images);
        write_file(folder / "l", labels);
        return open_format("idx", {{"path", text(folder / "i")}, {"labels", text(folder / "l")}});
    };
    const auto images = idx_bytes({2, 1, 2}, "abcd"), labels = idx_bytes({2}, std::string("\x01\x02", 2));
    EXPECT_EQ(open(images, labels)->size(), 2);
    EXPECT_ERROR(open("PNG and more", labels), IoError, "magic number");
    EXPECT_ERROR(open(images.substr(0, 10), labels), IoError, "truncated within its header");
    EXPECT_ERROR(open(images.substr(0, 18), labels), IoError, "truncated: it has 2 bytes of data, its header says 4");
    EXPECT_ERROR(open(images + "e", labels), IoError, "too long");
    EXPECT_ERROR(open(labels, labels), IoError, "This looks like a file of labels");
    EXPECT_ERROR(open(images, images), IoError, "This looks like a file of images");
    EXPECT_ERROR(open(images, idx_bytes({3}, "\x01\x02\x03")), IoError, "3 labels for 2 images");
    EXPECT_ERROR(open(images, idx_bytes({2}, std::string("\x01\x0a", 2))), IoError,
                 "label 10 of example 1 is out of the range 0 to 9");
    auto floats = images;
    floats[2] = 0x0d;
    EXPECT_ERROR(open(floats, labels), IoError, "holds IDX type 13");
    EXPECT_ERROR(open(idx_bytes({0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff}, "ab"), labels), IoError, "truncated");
    EXPECT_ERROR(open_format("idx", {{"path", text(folder / "i")}}), InvalidArgument,
                 "labels cannot be derived from i");
    EXPECT_ERROR(open_format("idx", {{"path", text(folder.path())}}), IoError,
                 "the folder holds none of train-images-idx3-ubyte");
    gzip(images, folder / "g");
    std::string packed(static_cast<size_t>(std::filesystem::file_size(folder / "g")), '\0');
    std::ifstream(folder / "g", std::ios::binary).read(packed.data(), static_cast<std::streamsize>(packed.size()));
    EXPECT_ERROR(open(packed.substr(0, packed.size() - 9), labels), IoError, "gzip file ends too early");
}

TEST(RealData, CifarTestImagesAreReadAsTheirReadmeSays) {
    SKIP_WITHOUT_DATA("cifar10/test.bin");
    const auto data = open_format("cifar10", {{"path", text(data_path("cifar10/test.bin"))}});
    ASSERT_EQ(data->size(), 10000);
    const auto batch = data->batch({0, 9999});
    std::ifstream file(data_path("cifar10/test.bin"), std::ios::binary);
    file.seekg(9999 * 3073);
    std::string record(3073, '\0');
    file.read(record.data(), 3073);
    EXPECT_EQ(batch.target[1].item<int64_t>(), record[0]);
    const auto blue = static_cast<unsigned char>(record[1 + 2048 + 5 * 32 + 6]);  // blue, row 5, column 6
    EXPECT_EQ(batch.inputs[0].toTensor()[1][2][5][6].item<float>(),
              (static_cast<float>(blue) / 255.0f - 0.406f) / 0.225f);
}

TEST(RealData, FashionImagesAreReadAsTheirReadmeSays) {
    SKIP_WITHOUT_DATA("fashion/t10k-images-idx3-ubyte");
    const auto data = open_format("idx", {{"path", text(data_path("fashion"))}, {"split", Setting::scalar("test")}});
    ASSERT_EQ(data->size(), 10000);
    const auto images = data->batch({0, 1, 2}).inputs[0].toTensor();
    EXPECT_EQ(images.sizes(), (std::vector<int64_t>{3, 1, 28, 28}));
    EXPECT_GE(images.min().item<float>(), 0);
    EXPECT_LE(images.max().item<float>(), 1);
    std::ifstream file(data_path("fashion/t10k-images-idx3-ubyte"), std::ios::binary);
    file.seekg(16 + 784 * 2 + 28 * 14 + 13);
    EXPECT_EQ(images[2][0][14][13].item<float>(), static_cast<float>(file.get()) / 255.0f);
}

}  // namespace coppice::testing
