"""What each score of an evaluation counts, in the words that stand in evaluation.json and in the report."""

# Score -> what it counts.
MEANINGS = {
    "generation_accuracy": "share of images, drawn for the classes' captions in turn, that the judge recognises as "
    "asked; Wilson 95 % interval",
    "judge_accuracy": "share of real held-out images that the judge recognises; it was trained on real training images "
    "only; Wilson 95 % interval",
    "caption_accuracy": "share of held-out images, clips or sounds whose greedy caption equals the reference but for "
    "case and spaces; Wilson 95 % interval",
    "caption_chrf": "chrF2 of these captions against their references, in 0 to 1: sequences of up to six characters "
    "that both have; 95 % bootstrap over captions",
    "caption_cider": "CIDEr-D of these captions, in 0 to 10: phrases of up to four words that both have, weighted by "
    "how few references have them; other sets of images do not compare; 95 % bootstrap over captions",
    "zero_shot_accuracy": "share of held-out images to which the caption of their class is nearer than those of "
    "other classes, in the space of a contrastive model; Wilson 95 % interval",
    "text_bits_per_byte": "bits of all text targets of the held-out documents (end of document and image openers "
    "included) / their bytes; images are clean; no caption is dropped; count: documents; 95 % bootstrap over documents",
    "velocity_loss": "mean squared error of the velocity of held-out images after their caption, at fixed times (0 is "
    "noise, 1 is data) and with fixed noise; count: images; 95 % bootstrap over images",
    "code_bits": "bits per code of held-out images after their caption; of masked codes at fixed shares of them, the "
    "same codes for every model; in the text's vocabulary without sizes and ends of rows; count: images; 95 % "
    "bootstrap over images",
    "feature_distance": "Frechet distance in the judge's features between drawn images and real training images; "
    "floor: between as many other real training images and the same ones; 95 % jackknife interval",
    "kernel_distance": "squared maximum mean discrepancy of a cubic kernel in the judge's features between drawn "
    "images and real training images, unbiased, so it may be negative: of few images it is, as the classes are drawn "
    "in turn, which is more even than chance; floor: between halves of the real images; 95 % jackknife interval",
    "similarity": "how well drawn images fit their prompts by the released model of --similarity: 100 max(cos, 0), and "
    "for SigLIP the probability that they belong together; numbers of other models do not compare; 95 % bootstrap over "
    "images",
    "retrieval": "share of drawn images whose asked image is the nearest (top1) or among the five nearest (top5) of "
    "all real images; Wilson 95 % interval",
}
