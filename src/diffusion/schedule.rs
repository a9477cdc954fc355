//! Noise schedule and `q_sample` (DDPM, arXiv 2006.11239; names of DiT's `gaussian_diffusion.py`).

use crate::noise::NoiseKey;

/// Number of noising steps that have been applied, minus one: 0 is one noising step. Below `num_timesteps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestep(pub u32);

/// A schedule of noise variances.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// (num_timesteps) f64: product of 1 - beta up to each timestep.
    alphas_cumprod: Vec<f64>,
}

impl Schedule {
    /// Betas from 1e-4 to 0.02, linear, for 1000 timesteps (DDPM, section 4); scaled for other lengths as DiT does.
    pub fn linear(num_timesteps: u32) -> Self {
        let scale = 1000.0 / f64::from(num_timesteps);
        let (first, last) = (scale * 1e-4, scale * 0.02);
        let span = f64::from(num_timesteps.max(2) - 1);
        let mut product = 1.0;
        let alphas_cumprod = (0..num_timesteps)
            .map(|t| {
                product *= 1.0 - (first + (last - first) * f64::from(t) / span);
                product
            })
            .collect();
        Self { alphas_cumprod }
    }

    pub fn num_timesteps(&self) -> u32 {
        u32::try_from(self.alphas_cumprod.len()).expect("made from a u32")
    }

    fn alpha_cumprod(&self, timestep: Timestep) -> f64 {
        self.alphas_cumprod[timestep.0 as usize]
    }

    /// (sqrt(alphas_cumprod[t]), sqrt(1 - alphas_cumprod[t])): the shares of signal and noise in x_t.
    pub fn signal_and_spread(&self, timestep: Timestep) -> (f32, f32) {
        let alpha_cumprod = self.alpha_cumprod(timestep);
        (alpha_cumprod.sqrt() as f32, (1.0 - alpha_cumprod).sqrt() as f32)
    }

    /// Noise of `draw` to `noise`, and what [`q_sample`](Self::q_sample) makes of it to `x_t`, in one pass.
    ///
    /// # Panics
    /// When the slices differ in length or the timestep lies outside the schedule: a bug of the caller.
    pub fn sample(&self, key: NoiseKey, draw: u32, timestep: Timestep, x_start: &[f32], noise: &mut [f32], x_t: &mut [f32]) {
        key.fill_noised(draw, noise, x_start, self.signal_and_spread(timestep), x_t);
    }

    /// Writes x_t = sqrt(alphas_cumprod[t]) x_start + sqrt(1 - alphas_cumprod[t]) noise.
    ///
    /// # Panics
    /// When the slices differ in length or the timestep lies outside the schedule: a bug of the caller.
    pub fn q_sample(&self, x_start: &[f32], timestep: Timestep, noise: &[f32], x_t: &mut [f32]) {
        assert_eq!(x_start.len(), noise.len(), "length of the noise");
        assert_eq!(x_start.len(), x_t.len(), "length of x_t");
        let (signal, spread) = self.signal_and_spread(timestep);
        for ((x_t, &x_start), &noise) in x_t.iter_mut().zip(x_start).zip(noise) {
            *x_t = spread.mul_add(noise, signal * x_start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pass_has_the_bits_of_noise_and_q_sample() {
        let (schedule, key) = (Schedule::linear(1000), NoiseKey::from_seed(4, "one pass", 0));
        for length in [1, 64, 99, 1024] {
            let mut x_start = vec![0f32; length];
            key.fill_normal(7, &mut x_start);
            let [mut noise, mut x_t, mut expected] = [(); 3].map(|()| vec![0f32; length]);
            schedule.sample(key, 3, Timestep(250), &x_start, &mut noise, &mut x_t);
            let mut alone = vec![0f32; length];
            key.fill_normal(3, &mut alone);
            schedule.q_sample(&x_start, Timestep(250), &alone, &mut expected);
            assert_eq!((noise, x_t), (alone, expected), "{length} values");
        }
    }

    #[test]
    fn linear_schedule_has_the_published_end_points() {
        let schedule = Schedule::linear(1000);
        assert!((schedule.alpha_cumprod(Timestep(0)) - 0.9999).abs() < 1e-12);
        // Value of the DDPM schedule's last product, from the published betas in f64.
        assert!((schedule.alpha_cumprod(Timestep(999)) - 4.035_829_765_375_757e-5).abs() < 1e-15);
    }

    #[test]
    fn q_sample_mixes_signal_and_noise_by_the_schedule() {
        let schedule = Schedule::linear(1000);
        let mut x_t = [0f32; 2];
        schedule.q_sample(&[1.0, 0.0], Timestep(400), &[0.0, 1.0], &mut x_t);
        assert!((x_t[0] * x_t[0] + x_t[1] * x_t[1] - 1.0).abs() < 1e-6);
        assert!(x_t[0] > 0.0 && x_t[0] < 1.0);
    }
}
