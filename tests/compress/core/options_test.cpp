#include "support/support.h"

namespace coppice {
namespace {

Setting at_line(const std::string& text, int line) {
    return Setting::scalar(text, "recipe.yaml line " + std::to_string(line) + ", column 5");
}

TEST(Options, GivesDefaultsAndRemembersWhatWasAsked) {
    Options options("prune.channel", Setting{});
    EXPECT_DOUBLE_EQ(options.number("ratio", 0.5, "share of channels"), 0.5);
    EXPECT_EQ(options.integer("round_to", 8), 8);
    EXPECT_TRUE(options.boolean("exact", true));
    EXPECT_EQ(options.text("ignore", "none"), "none");
    EXPECT_FALSE(options.optional_number("macs_ratio"));
    options.done();
    ASSERT_EQ(options.asked().size(), 5u);
    EXPECT_EQ(options.asked()[0].name, "ratio");
    EXPECT_EQ(options.asked()[0].default_text, "0.5");
    EXPECT_EQ(options.asked()[0].help, "share of channels");
    EXPECT_EQ(options.resolved().dump(),
              R"({"ratio":0.5,"round_to":8,"exact":true,"ignore":"none","macs_ratio":null})");
}

TEST(Options, AnUnknownOptionNamesItsPlaceAndTheNearest) {
    Options options("prune.channel", Setting::map({{"ratoi", at_line("0.5", 4)}}));
    options.number("ratio", 0.5);
    EXPECT_ERROR(options.done(), InvalidArgument,
                 "recipe.yaml line 4, column 5, prune.channel: unknown option \"ratoi\". Did you mean \"ratio\"?");
}

TEST(Options, AnUnknownOptionFarFromAllListsThem) {
    Options options("prune.channel", Setting::map({{"completely", at_line("1", 2)}}));
    options.number("ratio", 0.5);
    options.integer("round_to", 8);
    EXPECT_ERROR(options.done(), InvalidArgument, "Known: ratio or round_to.");
}

TEST(Options, AWrongTypeNamesTheTextAndTheDefault) {
    Options options("prune.channel", Setting::map({{"ratio", at_line("half", 4)}}));
    EXPECT_ERROR(
        options.number("ratio", 0.5), InvalidArgument,
        "recipe.yaml line 4, column 5, prune.channel: ratio is \"half\", must be a number. The default is 0.5.");
}

TEST(Options, NumbersThatAreNotFiniteAreNoNumbers) {
    for (const char* text : {"nan", "inf", "0x10", "1e999", "", "1 2"}) {
        Options options("x", {{"ratio", text}});
        EXPECT_ERROR(options.number("ratio", 0.5), InvalidArgument, "must be a number");
    }
}

TEST(Options, WholeNumbersRefuseFractionsAndRanges) {
    Options half("x", {{"bits", "4.5"}});
    EXPECT_ERROR(half.integer("bits", 8), InvalidArgument, "must be a whole number");
    Options low("x", {{"bits", "1"}});
    EXPECT_ERROR(low.integer("bits", 8, 2, 8), InvalidArgument, "bits is 1, must be in [2, 8]");
    Options negative("x", {{"epochs", "-1"}});
    EXPECT_ERROR(negative.integer("epochs", 1, 0), InvalidArgument, "must be at least 0");
}

TEST(Options, AChoiceNamesTheNearest) {
    Options options("x", {{"method", "histogam"}});
    EXPECT_ERROR(options.choice("method", "minmax", {"histogram", "minmax"}), InvalidArgument,
                 "method is \"histogam\", must be histogram or minmax. Did you mean \"histogram\"?");
}

TEST(Options, BooleansTakeTheWordsOfYaml) {
    for (const auto& [text, value] : std::vector<std::pair<std::string, bool>>{
             {"true", true}, {"yes", true}, {"on", true}, {"false", false}, {"no", false}, {"off", false}}) {
        Options options("x", {{"flip", text}});
        EXPECT_EQ(options.boolean("flip", !value), value) << text;
    }
    Options options("x", {{"flip", "perhaps"}});
    EXPECT_ERROR(options.boolean("flip", true), InvalidArgument, "must be true or false");
}

TEST(Options, AListMayBeOneValue) {
    Options one("x", {{"batch", "32"}});
    EXPECT_EQ(one.integers("batch", {1}), (std::vector<int64_t>{32}));
    Setting list;
    list.kind = Setting::Kind::kList;
    list.items = {Setting::scalar("1"), Setting::scalar("64")};
    Options two("x", Setting::map({{"batch", list}}));
    EXPECT_EQ(two.integers("batch", {1}), (std::vector<int64_t>{1, 64}));
    EXPECT_EQ(two.resolved()["batch"].dump(), "[1,64]");
}

TEST(Options, ANullMeansTheDefault) {
    Options options("x", Setting::map({{"ratio", Setting{}}}));
    EXPECT_DOUBLE_EQ(options.number("ratio", 0.25), 0.25);
    EXPECT_FALSE(options.has("ratio"));
}

struct Shape {
    virtual ~Shape() = default;
    double size = 0;
};

const std::vector<Entry<Shape>> kShapes = {
    {"circle", "round",
     [](Options& o) {
         auto shape = std::make_unique<Shape>();
         shape->size = o.number("radius", 1);
         return shape;
     }},
    {"square", "four sides", [](Options&) { return std::make_unique<Shape>(); }}};

TEST(Make, ReadsANameAloneAndANameWithOptions) {
    Options alone("draw", {{"shape", "circle"}});
    EXPECT_DOUBLE_EQ(make<Shape>(alone, "shape", "square", kShapes)->size, 1);
    EXPECT_EQ(alone.resolved()["shape"].dump(), R"({"circle":{"radius":1.0}})");
    Options with(
        "draw",
        Setting::map({{"shape", Setting::map({{"circle", Setting::map({{"radius", Setting::scalar("3")}})}})}}));
    EXPECT_DOUBLE_EQ(make<Shape>(with, "shape", "square", kShapes)->size, 3);
    Options absent("draw", Setting{});
    make<Shape>(absent, "shape", "square", kShapes);
    EXPECT_EQ(absent.resolved()["shape"].dump(), "\"square\"");
}

TEST(Make, AnUnknownNameIsPlacedAndNamesTheNearest) {
    Options options("draw", Setting::map({{"shape", at_line("circel", 3)}}));
    EXPECT_ERROR(make<Shape>(options, "shape", "square", kShapes), InvalidArgument,
                 "recipe.yaml line 3, column 5: unknown shape \"circel\". Did you mean \"circle\"?");
}

TEST(Make, OptionsOfTheMadeThingAreCheckedToo) {
    Options options("draw",
                    Setting::map({{"shape", Setting::map({{"circle", Setting::map({{"radios", at_line("3", 7)}})}})}}));
    EXPECT_ERROR(make<Shape>(options, "shape", "square", kShapes), InvalidArgument,
                 "recipe.yaml line 7, column 5, draw.circle: unknown option \"radios\". Did you mean \"radius\"?");
}

TEST(NearestName, FindsTypingErrorsButNotOtherWords) {
    const std::vector<std::string> known = {"prune.channel", "quantize.static", "train.finetune"};
    EXPECT_EQ(nearest_name("quantise.static", known), "quantize.static");
    EXPECT_EQ(nearest_name("static", known), "quantize.static");
    EXPECT_EQ(nearest_name("prune", known), "prune.channel");
    EXPECT_EQ(nearest_name("banana", known), std::nullopt);
}

}  // namespace
}  // namespace coppice
