//! RoTTA's memory bank: category-balanced sampling with timeliness and uncertainty (arXiv 2303.13899;
//! BIT-DA/RoTTA, `core/utils/memory.py`).
//!
//! Invariants: no more than `capacity` items; a class above its share gives way before others do.

/// Weight of age and of uncertainty in the score; `LAMBDA_T`, `LAMBDA_U`.
const AGE_WEIGHT: f64 = 1.0;
const UNCERTAINTY_WEIGHT: f64 = 1.0;

/// A frame that is remembered.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// (C, H, W)
    pub image: Vec<f32>,
    /// Entropy of the teacher's answer, nats.
    uncertainty: f64,
    /// Frames since it came.
    age: u32,
}

/// Frames by the class that the teacher saw in them.
pub struct Memory {
    capacity: usize,
    classes: Vec<Vec<Item>>,
}

impl Memory {
    pub fn new(capacity: usize, classes: usize) -> Self {
        Self { capacity, classes: vec![Vec::new(); classes] }
    }

    /// Remembers an image of `class` if there is room for it, or an item that it is better than; all items age.
    pub fn add(&mut self, image: Vec<f32>, class: usize, uncertainty: f64) {
        let item = Item { image, uncertainty, age: 0 };
        if self.makes_room(class, self.score(&item)) {
            self.classes[class].push(item);
        }
        self.classes.iter_mut().flatten().for_each(|item| item.age += 1);
    }

    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.classes.iter().flatten()
    }

    /// exp(-a) / (1 + exp(-a)) of the age a in capacities: how much an item counts.
    pub fn timeliness(&self, item: &Item) -> f64 {
        1.0 / (1.0 + self.relative_age(item).exp())
    }

    fn relative_age(&self, item: &Item) -> f64 {
        f64::from(item.age) / self.capacity as f64
    }

    /// The higher, the sooner an item goes.
    fn score(&self, item: &Item) -> f64 {
        let age = 1.0 / (1.0 + (-self.relative_age(item)).exp());
        AGE_WEIGHT * age + UNCERTAINTY_WEIGHT * item.uncertainty / (self.classes.len() as f64).ln()
    }

    fn makes_room(&mut self, class: usize, score: f64) -> bool {
        let is_under_its_share = self.classes[class].len() * self.classes.len() < self.capacity;
        match is_under_its_share {
            true if self.items().count() < self.capacity => true,
            true => self.removes_worse(&self.largest_classes(), score),
            false => self.removes_worse(&[class], score),
        }
    }

    fn largest_classes(&self) -> Vec<usize> {
        let largest = self.classes.iter().map(Vec::len).max().unwrap_or(0);
        (0..self.classes.len()).filter(|&class| self.classes[class].len() == largest).collect()
    }

    /// Removes the item of `classes` with the highest score, if that is above `score`; of equals the last.
    fn removes_worse(&mut self, classes: &[usize], score: f64) -> bool {
        let places = classes.iter().flat_map(|&class| (0..self.classes[class].len()).map(move |index| (class, index)));
        let scored = places.map(|(class, index)| (class, index, self.score(&self.classes[class][index])));
        match scored.max_by(|a, b| a.2.total_cmp(&b.2)) {
            Some((class, index, worst)) if worst > score => {
                self.classes[class].remove(index);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(memory: &Memory) -> Vec<usize> {
        memory.classes.iter().map(Vec::len).collect()
    }

    #[test]
    fn a_stream_of_one_class_fills_its_share_and_no_more() {
        let mut memory = Memory::new(6, 3);
        (0..20).for_each(|_| memory.add(vec![], 1, 0.1));
        assert_eq!(sizes(&memory), [0, 2, 0]);
    }

    #[test]
    fn classes_share_the_memory_evenly_however_often_they_come() {
        let mut memory = Memory::new(6, 3);
        for frame in 0..60 {
            memory.add(vec![], if frame % 10 == 0 { 2 } else { frame % 2 }, 0.1);
        }
        assert_eq!(sizes(&memory), [2, 2, 2]);
    }

    #[test]
    fn a_sure_frame_takes_the_place_of_an_unsure_one_and_not_the_other_way_round() {
        let mut memory = Memory::new(3, 3);
        memory.add(vec![1.0], 0, 1.0);
        memory.add(vec![2.0], 0, 0.1);
        assert_eq!(memory.items().map(|item| item.image[0]).collect::<Vec<_>>(), [2.0]);
        memory.add(vec![3.0], 0, 1.0);
        assert_eq!(memory.items().map(|item| item.image[0]).collect::<Vec<_>>(), [2.0]);
    }

    #[test]
    fn older_items_count_less() {
        let mut memory = Memory::new(4, 2);
        memory.add(vec![], 0, 0.1);
        memory.add(vec![], 1, 0.1);
        let counts: Vec<f64> = memory.items().map(|item| memory.timeliness(item)).collect();
        // Ages 2 and 1 of 4.
        assert!((counts[0] - 1.0 / (1.0 + 0.5f64.exp())).abs() < 1e-12 && counts[0] < counts[1], "{counts:?}");
    }
}
