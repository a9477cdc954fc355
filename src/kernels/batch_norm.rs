//! Batch norm over the tokens of all images, with the statistics of the batch, with given ones, which may differ from image to image, or
//! between them.

use super::slices::{tensor, values, with_values};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// Added to the variance (PyTorch, `nn.BatchNorm2d`).
const NORM_EPS: f64 = 1e-5;

/// Mean and variance of each channel (C).
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelMoments {
    pub mean: Vec<f32>,
    pub variance: Vec<f32>,
}

impl ChannelMoments {
    /// Over images and tokens of `x` (N, T, C).
    pub fn of(x: &Tensor) -> Result<Self> {
        let channels = x.dim(2)?;
        with_values(x, |x| Ok(moments(x, channels)))
    }

    /// These, moved the share `share` of their way to `others`.
    pub fn moved(&self, others: &Self, share: f32) -> Self {
        let moved = |from: &[f32], to: &[f32]| from.iter().zip(to).map(|(from, to)| (1.0 - share) * from + share * to).collect();
        Self { mean: moved(&self.mean, &others.mean), variance: moved(&self.variance, &others.variance) }
    }

    /// Of each image of `x` (N, T, C) by itself.
    pub fn of_images(x: &Tensor) -> Result<Vec<Self>> {
        let (_, tokens, channels) = x.dims3()?;
        with_values(x, |x| Ok(x.chunks_exact(tokens * channels).map(|image| moments(image, channels)).collect()))
    }

    /// Takes in `others` with the share `share` of the whole: the moments of the mixture, whose variance has that between the means, too.
    pub fn take_in(&mut self, others: &Self, share: f32) {
        for c in 0..self.mean.len() {
            let apart = others.mean[c] - self.mean[c];
            self.mean[c] += share * apart;
            self.variance[c] = (1.0 - share) * (self.variance[c] + share * apart * apart) + share * others.variance[c];
        }
    }
}

/// Which moments a norm takes.
#[derive(Clone, Copy, Debug)]
pub enum NormMoments<'a> {
    /// One for each image, or one for all.
    Given(&'a [&'a ChannelMoments]),
    /// Those of `x`; the gradient goes through them.
    Batch,
    /// Given ones, moved the share `share` of their way to those of `x`; the gradient goes through that share.
    Mixed { given: &'a ChannelMoments, share: f32 },
}

/// y (N, T, C) = (x - mean) / sqrt(variance + eps) * scale + shift; `scale` and `shift` are (C).
pub fn batch_norm(x: &Tensor, scale: &Tensor, shift: &Tensor, moments: NormMoments<'_>) -> Result<Tensor> {
    let op = match moments {
        NormMoments::Given(given) => BatchNorm { given: given.iter().map(|&moments| moments.clone()).collect(), share: 0.0 },
        NormMoments::Batch => BatchNorm { given: Vec::new(), share: 1.0 },
        NormMoments::Mixed { given, share } => BatchNorm { given: vec![given.clone()], share },
    };
    x.contiguous()?.apply_op3(&scale.contiguous()?, &shift.contiguous()?, op)
}

struct BatchNorm {
    /// One for each image, or one for all, or none.
    given: Vec<ChannelMoments>,
    /// Of the batch's own moments, 0..=1; 1 without given ones, 0 with one for each image.
    share: f32,
}

/// Two passes, with sums in f64 in the order of the rows.
fn moments(x: &[f32], channels: usize) -> ChannelMoments {
    let count = (x.len() / channels) as f64;
    let sums = |term: &dyn Fn(usize, f32) -> f64| {
        let mut sums = vec![0f64; channels];
        x.chunks_exact(channels).for_each(|row| row.iter().enumerate().for_each(|(c, &value)| sums[c] += term(c, value)));
        sums.into_iter().map(|sum| sum / count).collect::<Vec<f64>>()
    };
    let mean = sums(&|_, value| f64::from(value));
    let variance = sums(&|c, value| (f64::from(value) - mean[c]).powi(2));
    let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
    ChannelMoments { mean: narrow(mean), variance: narrow(variance) }
}

/// 1 / sqrt(variance + eps)
fn reciprocals(variance: &[f32]) -> Vec<f32> {
    variance.iter().map(|&variance| (1.0 / (f64::from(variance) + NORM_EPS).sqrt()) as f32).collect()
}

impl BatchNorm {
    /// The moments that images of `x` are normalised by, one for each or one for all, and those of `x` where they have a share.
    fn moments(&self, x: &[f32], channels: usize) -> (Vec<ChannelMoments>, Option<ChannelMoments>) {
        let own = (self.share > 0.0).then(|| moments(x, channels));
        let taken = match (&*self.given, &own) {
            (given, None) => given.to_vec(),
            ([], Some(own)) => vec![own.clone()],
            (given, Some(own)) => given.iter().map(|given| given.moved(own, self.share)).collect(),
        };
        (taken, own)
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, t, c) = x_layout.shape().dims3()?;
        let (x, scale, shift) = (values(x, x_layout)?, values(scale, scale_layout)?, values(shift, shift_layout)?);
        let (taken, _) = self.moments(x, c);
        if taken.len() != 1 && taken.len() != n {
            bail!("{} moments for {n} images", taken.len());
        }
        for ChannelMoments { mean, variance } in &taken {
            if [scale.len(), shift.len(), mean.len(), variance.len()] != [c; 4] {
                bail!("scale {}, shift {}, mean {}, variance {} for {c} channels", scale.len(), shift.len(), mean.len(), variance.len());
            }
        }
        let line = |ChannelMoments { mean, variance }: &ChannelMoments| {
            let factor: Vec<f32> = reciprocals(variance).iter().zip(scale).map(|(r, scale)| r * scale).collect();
            let offset: Vec<f32> = (0..c).map(|i| shift[i] - mean[i] * factor[i]).collect();
            (factor, offset)
        };
        let lines: Vec<(Vec<f32>, Vec<f32>)> = taken.iter().map(line).collect();
        let mut y = x.to_vec();
        for (image, (factor, offset)) in y.chunks_exact_mut(t * c).zip(lines.iter().cycle()) {
            for row in image.chunks_exact_mut(c) {
                for ((y, &factor), &offset) in row.iter_mut().zip(factor).zip(offset) {
                    *y = y.mul_add(factor, offset);
                }
            }
        }
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    /// With x^ = (x - mean) r: dshift = sum g, dscale = sum g x^, dx = r scale g, and with the share a of the batch's own
    /// moments, of mean m, dx = r scale (g - a mean(g) - a (x - m) r mean(g x^)).
    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _shift: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, t, c) = x.dims3()?;
        let count = (x.elem_count() / c) as f32;
        let (mut dscale, mut dshift) = (vec![0f32; c], vec![0f32; c]);
        let dx = with_values(x, |x| {
            with_values(gradient, |g| {
                let (taken, own) = self.moments(x, c);
                let taken: Vec<(&[f32], Vec<f32>)> = taken.iter().map(|taken| (&*taken.mean, reciprocals(&taken.variance))).collect();
                for ((x, g), (mean, reciprocal)) in x.chunks_exact(t * c).zip(g.chunks_exact(t * c)).zip(taken.iter().cycle()) {
                    for (x, g) in x.chunks_exact(c).zip(g.chunks_exact(c)) {
                        for i in 0..c {
                            dshift[i] += g[i];
                            dscale[i] += g[i] * ((x[i] - mean[i]) * reciprocal[i]);
                        }
                    }
                }
                let share = self.share / count;
                with_values(scale, |scale| {
                    let mut dx = g.to_vec();
                    for ((dx, x), (mean, reciprocal)) in dx.chunks_exact_mut(t * c).zip(x.chunks_exact(t * c)).zip(taken.iter().cycle()) {
                        let own_mean = own.as_ref().map_or(*mean, |own| &own.mean);
                        for (dx, x) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                            for i in 0..c {
                                let normal = (x[i] - own_mean[i]) * reciprocal[i];
                                dx[i] = reciprocal[i] * scale[i] * (dx[i] - share * (dshift[i] + normal * dscale[i]));
                            }
                        }
                    }
                    Ok(dx)
                })
            })
        })?;
        let of_channel = Shape::from(c);
        Ok((Some(tensor(dx, x.shape())), Some(tensor(dscale, &of_channel)), Some(tensor(dshift, &of_channel))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_is_taken_in_makes_the_moments_of_both_together() {
        let values: Vec<f32> = (0..24u8).map(|i| f32::from(i * i % 11)).collect();
        let of =
            |values: &[f32]| ChannelMoments::of(&Tensor::from_slice(values, (1, values.len() / 2, 2), &Device::Cpu).expect("a tensor"));
        let (mut first, rest, all) = (of(&values[..6]).expect("x"), of(&values[6..]).expect("x"), of(&values).expect("x"));
        first.take_in(&rest, 0.75);
        for (taken, expected) in first.mean.iter().chain(&first.variance).zip(all.mean.iter().chain(&all.variance)) {
            assert!((taken - expected).abs() < 1e-5, "{taken} against {expected}");
        }
    }
}
