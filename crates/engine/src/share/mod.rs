//! How requests share the tokens of a step.

/// A request that reads gets at least so many tokens, if there are any: smaller chunks are slow for what they do.
const LEAST: usize = 32;

/// Tokens for each request that needs `needs`, oldest first, `budget` in all.
///
/// Texts that are being written need one token and get it. Of the rest a request gets at most half of what is left by
/// those before it: an old one is soon done, and still a short prompt need not wait until a long one is read. What then
/// remains goes to the oldest.
pub(crate) fn share(needs: &[usize], budget: usize) -> Vec<usize> {
    let mut shares = vec![0; needs.len()];
    let mut left = budget;
    let each = |shares: &mut [usize], left: &mut usize, most: fn(usize, usize) -> usize| {
        for (share, need) in shares.iter_mut().zip(needs) {
            let more = (need - *share).min(most(*need, *left)).min(*left);
            *share += more;
            *left -= more;
        }
    };
    each(&mut shares, &mut left, |need, _| if need == 1 { 1 } else { 0 });
    each(&mut shares, &mut left, |_, left| (left / 2).max(LEAST));
    each(&mut shares, &mut left, |_, left| left);
    shares
}

#[cfg(test)]
mod tests;
