#include <ATen/CPUGeneratorImpl.h>

#include <map>
#include <set>

#include "files.h"

namespace coppice::testing {
namespace {

at::Generator generator(uint64_t seed) {
    return at::make_generator<at::CPUGeneratorImpl>(seed);
}

/// Plain loops: pixel (y, x) of the crop is pixel (y + dy, x + dx) of the image, zero outside of it.
at::Tensor shifted(const at::Tensor& image, int64_t dy, int64_t dx) {
    auto out = at::zeros_like(image);
    for (int64_t c = 0; c < image.size(0); ++c)
        for (int64_t y = 0; y < image.size(1); ++y)
            for (int64_t x = 0; x < image.size(2); ++x)
                if (y + dy >= 0 && y + dy < image.size(1) && x + dx >= 0 && x + dx < image.size(2))
                    out[c][y][x] = image[c][y + dy][x + dx];
    return out;
}

}  // namespace

TEST(RandomCrop, EveryImageIsAShiftAndEveryShiftOccurs) {
    const auto images = (at::arange(300 * 2 * 3 * 4, at::kFloat) + 1).reshape({300, 2, 3, 4});
    const auto crops = random_crop(images, 1, generator(1));
    ASSERT_EQ(crops.sizes(), images.sizes());
    std::map<std::pair<int64_t, int64_t>, int> seen;
    for (int64_t i = 0; i < 300; ++i)
        for (int64_t dy = -1; dy <= 1; ++dy)
            for (int64_t dx = -1; dx <= 1; ++dx)
                if (i < 60 ? at::equal(crops[i], shifted(images[i], dy, dx))
                           : crops[i][0][1][1].item<float>() == images[i][0][1 + dy][1 + dx].item<float>())
                    ++seen[{dy, dx}];
    int total = 0;
    for (const auto& [shift, count] : seen) total += count;
    EXPECT_EQ(total, 300);       // each crop is exactly one of the nine shifts
    EXPECT_EQ(seen.size(), 9u);  // 300 draws miss one of nine with probability 9 (8/9)^300 = 4e-15
}

TEST(RandomCrop, TakesPaddingLargerThanTheImageAndOtherMemoryOrders) {
    const auto images = at::rand({8, 3, 2, 2});
    EXPECT_EQ(random_crop(images, 5, generator(2)).sizes(), images.sizes());
    EXPECT_TRUE(at::equal(random_crop(images.contiguous(at::MemoryFormat::ChannelsLast), 1, generator(3)),
                          random_crop(images, 1, generator(3))));
    EXPECT_TRUE(at::equal(random_crop(images, 0, generator(3)), images));
    EXPECT_ERROR(random_crop(at::ones({3, 4}), 1, generator(3)), InvalidArgument, "must be [N, C, H, W]");
}

TEST(RandomFlip, MirrorsAboutHalfOfTheImages) {
    for (const auto type : {at::kFloat, at::kByte, at::kDouble}) {
        const auto images = at::arange(400 * 2 * 2 * 3, at::kDouble).remainder(251).reshape({400, 2, 2, 3}).to(type);
        const auto flipped = random_flip(images, generator(4));
        int mirrored = 0;
        for (int64_t i = 0; i < 400; ++i) {
            const bool same = at::equal(flipped[i], images[i]);
            mirrored += !same;
            ASSERT_TRUE(same || at::equal(flipped[i], images[i].flip({2}))) << i;
        }
        EXPECT_NEAR(mirrored, 200, 60);  // six standard deviations of a fair coin
    }
}

TEST(Augmentation, IsTheSameForTheSameSeed) {
    const auto images = at::rand({20, 3, 8, 8});
    EXPECT_TRUE(at::equal(random_crop(images, 2, generator(7)), random_crop(images, 2, generator(7))));
    EXPECT_FALSE(at::equal(random_crop(images, 2, generator(7)), random_crop(images, 2, generator(8))));
    EXPECT_TRUE(at::equal(random_flip(images, generator(7)), random_flip(images, generator(7))));
}

}  // namespace coppice::testing
